"""Projects and their API keys. A key is shown once, and only its SHA-256 is stored."""

import asyncio
import secrets
from collections.abc import Collection
from contextvars import Context
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from app.core.crypto import sha256_hex
from app.core.db import DATABASE_UNAVAILABLE, AnySession, Session, Sessions, reading, transaction
from app.core.errors import InvalidFields, NotFound
from app.core.ids import new_id
from app.projects import repository
from app.projects.repository import LiveKey

__all__ = ["LiveKey"]

_MAX_NAME_LENGTH = 200

log = structlog.get_logger()


@dataclass(frozen=True)
class NewKey:
    """A new API key. `api_key` is the key itself, which is not stored and cannot be shown again."""

    key_id: str
    project_id: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class ProjectRow:
    project_id: str
    name: str
    created_at: datetime
    live_keys: int


@dataclass(frozen=True)
class ApiKeyRow:
    key_id: str
    name: str
    project_id: str
    project_name: str
    created_at: datetime
    last_used_at: datetime | None
    disabled_at: datetime | None


async def create_project(session: Session, name: str) -> NewKey:
    """Create a project and its first key.

    Raises InvalidFields for a name that is blank, too long or not printable.
    """
    project_id = new_id("proj")
    await repository.insert_project(session, project_id, _name(name))
    return await create_api_key(session, project_id, "first key")


async def create_api_key(session: Session, project_id: str, name: str) -> NewKey:
    """Create a key. Raises NotFound for an unknown project, InvalidFields as `create_project` does."""
    name = _name(name)
    if not await repository.project_exists(session, project_id):
        raise NotFound("Project not found")
    key_id, api_key = new_id("key"), secrets.token_urlsafe(32)
    await repository.insert_api_key(
        session, key_id=key_id, project_id=project_id, name=name, key_sha256=sha256_hex(api_key)
    )
    return NewKey(key_id, project_id, api_key)


async def disable_api_key(session: Session, key_id: str) -> None:
    """Disable a key, which stops working at once. Raises NotFound."""
    if not await repository.disable_api_key(session, key_id):
        raise NotFound("API key not found")


async def project_exists(session: AnySession, project_id: str) -> bool:
    return await repository.project_exists(session, project_id)


async def list_projects(session: AnySession) -> list[ProjectRow]:
    """Return all projects, oldest first."""
    return [ProjectRow(**row) for row in await repository.list_projects(session)]


async def list_api_keys(session: AnySession, project_id: str | None) -> list[ApiKeyRow]:
    """Return a project's keys, or all keys, oldest first. Raises NotFound for an unknown project."""
    if project_id is not None and not await repository.project_exists(session, project_id):
        raise NotFound("Project not found")
    return [ApiKeyRow(**row) for row in await repository.list_api_keys(session, project_id)]


async def find_live_key(session: AnySession, api_key: str) -> LiveKey | None:
    """Return the key with this text, or None if there is none or it is disabled."""
    return await repository.find_live_key(session, sha256_hex(api_key))


async def find_live_key_ids(session: AnySession, ids: Collection[str]) -> set[str]:
    """Return those of the key ids whose keys exist and are not disabled."""
    return await repository.find_live_key_ids(session, ids)


def _name(text: str) -> str:
    name = text.strip()
    if not name:
        raise InvalidFields.one("name", "A name may not be blank.")
    if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidFields.one("name", f"A name has at most {_MAX_NAME_LENGTH} characters, all printable.")
    return name


class KeyCheck:
    """Looks up the keys of requests, and writes at most once a minute that a key was used.

    One per process.

    The request does not wait for the write. Of the requests with one key that come at once, as a thousand do that waited
    for the same change, the first has a query of its own, and those that come meanwhile share the next.
    """

    def __init__(self, sessions: Sessions, read_sessions: Sessions) -> None:
        self._sessions = sessions
        self._read_sessions = read_sessions
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, asyncio.Task[LiveKey | None]] = {}
        self._next: dict[str, asyncio.Task[LiveKey | None]] = {}

    async def find(self, api_key: str) -> LiveKey | None:
        """Return the key if it exists and is not disabled. The look-up has its own short session.

        Its query begins after the call, so a key that was disabled before is not found.
        """
        looking = self._next.get(api_key)
        if looking is None:
            looking = self._next[api_key] = asyncio.create_task(self._look_up(api_key), context=Context())
            looking.add_done_callback(_retrieve)
        key = await asyncio.shield(looking)
        if key is not None and key.is_use_due and key.id not in self._writing:
            self._writing[key.id] = asyncio.create_task(self._note(key.id))
        return key

    async def _look_up(self, api_key: str) -> LiveKey | None:
        if (running := self._running.get(api_key)) is not None:
            await asyncio.wait([running])
        this = self._running[api_key] = self._next.pop(api_key)
        try:
            async with reading(self._read_sessions) as session:
                return await find_live_key(session, api_key)
        finally:
            if self._running[api_key] is this:
                del self._running[api_key]

    async def _note(self, key_id: str) -> None:
        try:
            async with transaction(self._sessions) as session:
                await repository.note_use(session, key_id)
        except DATABASE_UNAVAILABLE as err:
            log.warning("key_use_not_written", key_id=key_id, error=type(err).__name__)
        finally:
            del self._writing[key_id]

    async def aclose(self) -> None:
        """Wait for the look-ups and the writes to end."""
        for tasks in (self._next, self._running, self._writing):
            if tasks:
                await asyncio.wait(list(tasks.values()))


def _retrieve(looking: asyncio.Task[LiveKey | None]) -> None:
    """Take the exception of a look-up. Its requests may all have ended."""
    if not looking.cancelled():
        looking.exception()
