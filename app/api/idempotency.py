"""`Idempotency-Key` on POST: the first answer is kept in the transaction that did the work (contract 2).

The key's row is inserted first. A second request with the same key waits on it until the first has committed,
and then gives the same answer; if the first failed, its row is gone with the rest and the second does the work.

Answers are stored sealed: that of a new webhook has its secret in it.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.api.deps import AppState, DbSession, ProjectId
from app.core.crypto import SecretBox
from app.core.db import Sessions, reading
from app.core.errors import BadQuery, Conflict
from app.models import StoredResponse

KEPT_FOR = timedelta(hours=24)
_MAX_LENGTH = 255

_table = StoredResponse


class Idempotency:
    """Runs a POST's work at most once per project and key."""

    def __init__(
        self, session: DbSession, box: SecretBox, project_id: str, key: str | None, request_sha256: str
    ) -> None:
        self._session = session
        self._box = box
        self._project_id = project_id
        self._key = key
        self._request_sha256 = request_sha256

    async def once(self, work: Callable[[], Awaitable[bytes]], *, status_code: int = 201) -> Response:
        """The answer of `work` (a JSON body), or the first answer again. Raises Conflict for another body."""
        if self._key is None:
            return _json(await work(), status_code)
        mine = self._mine
        await self._session.execute(delete(_table).where(mine, _table.created_at < func.now() - KEPT_FOR))
        inserted = await self._session.scalar(
            insert(_table)
            .values(project_id=self._project_id, key=self._key, request_sha256=self._request_sha256)
            .on_conflict_do_nothing()
            .returning(_table.key)
        )
        if inserted is None:
            return self._again((await self._session.execute(select(_table).where(mine))).scalar_one())
        body = await work()
        sealed = self._box.seal(self._context, body.decode())
        await self._session.execute(update(_table).where(mine).values(status_code=status_code, body=sealed))
        return _json(body, status_code)

    async def first_answer(self, sessions: Sessions) -> Response | None:
        """The first answer, if there is one by now: for what asks the network before it begins its transaction.

        Raises Conflict for another body.
        """
        if self._key is None:
            return None
        async with reading(sessions) as session:
            is_kept = _table.created_at >= func.now() - KEPT_FOR
            first = (await session.execute(select(_table).where(self._mine, is_kept))).scalar_one_or_none()
        return None if first is None else self._again(first)

    def _again(self, first: StoredResponse) -> Response:
        if first.request_sha256 != self._request_sha256 or first.body is None or first.status_code is None:
            raise Conflict("This Idempotency-Key was used with another request in the last 24 hours.")
        return _json(self._box.open(self._context, first.body).encode(), first.status_code)

    @property
    def _mine(self) -> ColumnElement[bool]:
        return (_table.project_id == self._project_id) & (_table.key == self._key)

    @property
    def _context(self) -> str:
        return f"idempotent_answers:{self._project_id}:{self._key}"


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
