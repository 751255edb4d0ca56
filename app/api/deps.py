"""Dependencies of routes: the process's state, sessions, and the project of the API key."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from limits import RateLimitItemPerMinute

from app.core.crypto import SecretBox
from app.core.db import ReadSession, Session, Sessions, reading, transaction
from app.core.errors import TooManyRequests, Unauthorized
from app.core.http import httpx
from app.core.ratelimit import RateLimiter
from app.core.wakeups import WakeUps
from app.projects.service import KeyCheck, LiveKey
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class State:
    """Objects that every feature may need. The lifespan in app/main.py creates them once per process.

    A feature's own objects are attributes of `app.state`. The feature declares the dependency that reads them.
    """

    settings: Settings
    sessions: Sessions
    read_sessions: Sessions
    keys: KeyCheck
    box: SecretBox
    wakeups: WakeUps
    http: httpx.AsyncClient
    post_limiter: RateLimiter


async def get_state(request: Request) -> State:
    """Return the process's state. It is async because FastAPI runs other dependencies in a thread."""
    state: State = request.app.state.calbridge
    return state


AppState = Annotated[State, Depends(get_state)]


async def _request_transaction(state: AppState) -> AsyncIterator[Session]:
    async with transaction(state.sessions) as session:
        yield session


async def _request_reading(state: AppState) -> AsyncIterator[ReadSession]:
    async with reading(state.read_sessions) as session:
        yield session


# scope="function" commits before the response is sent, so that a failed commit is a 500.
DbSession = Annotated[Session, Depends(_request_transaction, scope="function")]
# Each statement of a read session sees what was committed when it began. There is no common transaction.
DbReadSession = Annotated[ReadSession, Depends(_request_reading, scope="function")]

# Both schemes read the same header. /docs and generated clients use the first one with the bare key.
_bearer = HTTPBearer(scheme_name="Bearer", description="The API key as it was printed.", auto_error=False)
_scheme = APIKeyHeader(
    name="Authorization",
    scheme_name="ApiKey",
    description="`Token <api key>`, with the word Token, as Attendee's clients send it.",
    auto_error=False,
)


async def find_project_id(state: State, header: str | None) -> str:
    """Return the project of the API key in an Authorization header. Raises Unauthorized."""
    return (await _find_key(state, header)).project_id


async def _find_key(state: State, header: str | None) -> LiveKey:
    """Return the API key in an Authorization header. Raises Unauthorized.

    The look-up has its own short session, so that no request holds two connections. The request's later log lines have
    the project's and the key's ids.
    """
    if header is None:
        raise Unauthorized("Send your API key in the header: Authorization: Token <api key>.")
    scheme, _, key = header.partition(" ")
    if scheme.lower() not in {"token", "bearer"} or not key.strip():
        raise Unauthorized("The Authorization header must read: Token <api key>.")
    found = await state.keys.find(key.strip())
    if found is None:
        raise Unauthorized("This API key is not known or has been disabled.")
    structlog.contextvars.bind_contextvars(project_id=found.project_id, key_id=found.id)
    return found


async def _live_key(
    request: Request,
    state: AppState,
    _bearer: Annotated[object, Depends(_bearer)],
    header: Annotated[str | None, Depends(_scheme)],
) -> LiveKey:
    key = await _find_key(state, header)
    if request.method == "POST":
        await _count_post(state, key.id)
    return key


async def _count_post(state: State, key_id: str) -> None:
    """Count a POST of this key. Raises TooManyRequests if it has no more left in this minute."""
    per_minute = state.settings.api_posts_per_minute
    if not per_minute:
        return
    limit = RateLimitItemPerMinute(per_minute)
    if not await state.post_limiter.hit(limit, key_id):
        sentence = (
            f"An API key may send {per_minute} POST requests a minute. Try again when Retry-After is over."
        )
        raise TooManyRequests(sentence, retry_after=await state.post_limiter.retry_after(limit, key_id))


ApiKey = Annotated[LiveKey, Depends(_live_key)]


async def _project_id(key: ApiKey) -> str:
    return key.project_id


ProjectId = Annotated[str, Depends(_project_id)]
