"""`Idempotency-Key` on POST: the first response is stored in the transaction that did the work.

The key's row is inserted first. A second request with the same key waits for the first to commit and then gets the
same response. If the first fails, its row is rolled back with the rest, and the second request does the work.

Stored responses are encrypted: that of a new webhook contains its secret.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.api.deps import AppState, DbSession, ProjectId
from app.core.crypto import SecretBox
from app.core.db import Sessions, delete_in_batches, reading
from app.core.errors import BadQuery, Conflict
from app.models import StoredResponse

_KEEP_FOR = timedelta(hours=24)
_MAX_LENGTH = 255


class Idempotency:
    """Runs the work of a POST at most once per project and key. `key` None: every time."""

    def __init__(
        self, session: DbSession, box: SecretBox, project_id: str, key: str | None, request_sha256: str
    ) -> None:
        self._session = session
        self._box = box
        self._project_id = project_id
        self._key = key
        self._request_sha256 = request_sha256

    async def once(
        self, work: Callable[[], Awaitable[BaseModel | bytes]], *, status_code: int = 201
    ) -> Response:
        """Respond with what `work` returns (a model, or a JSON body), or with the stored response to this key.

        Raises Conflict if the key was used with another request.
        """
        if self._key is None:
            return _json(_body(await work()), status_code)
        is_mine = self._is_mine
        is_old = StoredResponse.created_at < func.now() - _KEEP_FOR
        await self._session.execute(delete(StoredResponse).where(is_mine, is_old))
        inserted = await self._session.scalar(
            insert(StoredResponse)
            .values(project_id=self._project_id, key=self._key, request_sha256=self._request_sha256)
            .on_conflict_do_nothing()
            .returning(StoredResponse.key)
        )
        if inserted is None:
            found = await self._session.execute(select(StoredResponse).where(is_mine))
            return self._repeat(found.scalar_one())
        body = _body(await work())
        sealed = self._box.seal(self._context, body.decode())
        await self._session.execute(
            update(StoredResponse).where(is_mine).values(status_code=status_code, body=sealed)
        )
        return _json(body, status_code)

    async def find_stored(self, sessions: Sessions) -> Response | None:
        """The stored response to this key, if there is one, read outside the request's transaction.

        For work that calls another service before its transaction begins. Raises Conflict like `once`.
        """
        if self._key is None:
            return None
        async with reading(sessions) as session:
            is_kept = StoredResponse.created_at >= func.now() - _KEEP_FOR
            found = await session.execute(select(StoredResponse).where(self._is_mine, is_kept))
            stored = found.scalar_one_or_none()
        return None if stored is None else self._repeat(stored)

    def _repeat(self, stored: StoredResponse) -> Response:
        is_same = stored.request_sha256 == self._request_sha256
        if not is_same or stored.body is None or stored.status_code is None:
            raise Conflict("This Idempotency-Key was used with another request in the last 24 hours.")
        return _json(self._box.open(self._context, stored.body).encode(), stored.status_code)

    @property
    def _is_mine(self) -> ColumnElement[bool]:
        return (StoredResponse.project_id == self._project_id) & (StoredResponse.key == self._key)

    @property
    def _context(self) -> str:
        return f"idempotent_answers:{self._project_id}:{self._key}"


async def prune_stored_responses(sessions: Sessions) -> int:
    """Delete stored responses after 24 hours, in batches; how many."""
    condition = "created_at < now() - CAST(:keep_for AS interval)"
    return await delete_in_batches(sessions, "idempotent_answers", condition, {"keep_for": _KEEP_FOR})


def _body(result: BaseModel | bytes) -> bytes:
    return result if isinstance(result, bytes) else result.model_dump_json().encode()


def _json(body: bytes, status_code: int) -> Response:
    return Response(body, status_code, media_type="application/json")


async def _idempotency(
    request: Request,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="A repeated request with the same key and body gets the first response again, for 24 hours.",
            json_schema_extra={"minLength": 1, "maxLength": _MAX_LENGTH, "pattern": "^[ -~]*$"},
        ),
    ] = None,
) -> Idempotency:
    if key is not None and not (0 < len(key) <= _MAX_LENGTH and key.isprintable() and key.isascii()):
        raise BadQuery(f"The Idempotency-Key must have 1 to {_MAX_LENGTH} printable ASCII characters.")
    digest = sha256(request.method.encode() + request.url.path.encode() + b"\n" + await request.body())
    return Idempotency(session, state.box, project_id, key, digest.hexdigest())


Idempotent = Annotated[Idempotency, Depends(_idempotency, scope="function")]
