"""Projects and API keys. Keys are shown once and stored as their SHA-256 only."""

import asyncio
import secrets
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from app.core.crypto import sha256_hex
from app.core.db import AWAY, AnySession, Session, Sessions, reading, transaction
from app.core.errors import InvalidFields, NotFound
from app.core.ids import new_id
from app.projects import repository
from app.projects.repository import LiveKey

__all__ = ["LiveKey"]

_LONGEST_NAME = 200

log = structlog.get_logger()


@dataclass(frozen=True)
class NewKey:
    """`api_key` is the key itself, which is nowhere to be had again."""

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
    """A new project and its first key. Raises InvalidFields for a name that cannot be read."""
    project_id = new_id("proj")
    await repository.insert_project(session, project_id, _name(name))
    return await create_api_key(session, project_id, "first key")


async def create_api_key(session: Session, project_id: str, name: str) -> NewKey:
    """Raises NotFound for an unknown project, InvalidFields for a name that cannot be read."""
    name = _name(name)
    if not await repository.project_exists(session, project_id):
        raise NotFound("Project not found")
    key_id, api_key = new_id("key"), secrets.token_urlsafe(32)
    await repository.insert_api_key(
        session, key_id=key_id, project_id=project_id, name=name, key_sha256=sha256_hex(api_key)
    )
    return NewKey(key_id, project_id, api_key)


async def disable_api_key(session: Session, key_id: str) -> None:
    """The key stops working at once. Raises NotFound."""
    if not await repository.disable_api_key(session, key_id):
        raise NotFound("API key not found")


async def project_exists(session: AnySession, project_id: str) -> bool:
    return await repository.project_exists(session, project_id)


async def list_projects(session: AnySession) -> list[ProjectRow]:
    """All of them, oldest first."""
    return [ProjectRow(**row) for row in await repository.list_projects(session)]


async def list_api_keys(session: AnySession, project_id: str | None) -> list[ApiKeyRow]:
    """A project's keys, or all; oldest first. Raises NotFound for an unknown project."""
    if project_id is not None and not await repository.project_exists(session, project_id):
        raise NotFound("Project not found")
    return [ApiKeyRow(**row) for row in await repository.list_api_keys(session, project_id)]


async def find_live_key(session: AnySession, api_key: str) -> LiveKey | None:
    """The key that is not disabled and reads so."""
    return await repository.find_live_key(session, sha256_hex(api_key))


def _name(text: str) -> str:
    name = text.strip()
    if not name:
        raise InvalidFields.one("name", "A name may not be blank.")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise InvalidFields.one("name", f"A name has at most {_LONGEST_NAME} characters, all printable.")
    return name


class KeyCheck:
    """Looks up the keys of requests, and writes down once a minute that a key is used. One per process.

    The writing is beside the request, which does not wait for it.
    """

    def __init__(self, sessions: Sessions, read_sessions: Sessions) -> None:
        self._sessions = sessions
        self._read_sessions = read_sessions
        self._writing: dict[str, asyncio.Task[None]] = {}

    async def find(self, api_key: str) -> LiveKey | None:
        """The key, if it is a live one. The look-up has a short session of its own."""
        async with reading(self._read_sessions) as session:
            key = await find_live_key(session, api_key)
        if key is not None and key.is_use_due and key.id not in self._writing:
            self._writing[key.id] = asyncio.create_task(self._note(key.id))
        return key

    async def _note(self, key_id: str) -> None:
        try:
            async with transaction(self._sessions) as session:
                await repository.note_use(session, key_id)
        except AWAY as err:
            log.warning("key_use_not_written", key_id=key_id, error=type(err).__name__)
        finally:
            del self._writing[key_id]

    async def aclose(self) -> None:
        """Waits for what is being written."""
        if self._writing:
            await asyncio.wait(list(self._writing.values()))
