"""Projects and API keys. Keys are shown once and stored as their SHA-256 only."""

import secrets

from app.core.crypto import sha256_hex
from app.core.db import Session
from app.core.errors import NotFound
from app.core.ids import new_id
from app.projects import repository


async def create_project(session: Session, name: str) -> tuple[str, str]:
    """A new project and its first key: (project_id, api_key)."""
    project_id = new_id("proj")
    await repository.insert_project(session, project_id, name)
    _, api_key = await create_api_key(session, project_id, "first key")
    return project_id, api_key


async def create_api_key(session: Session, project_id: str, name: str) -> tuple[str, str]:
    """(key_id, api_key). Raises NotFound for an unknown project."""
    if not await repository.project_exists(session, project_id):
        raise NotFound("Project not found")
    key_id, api_key = new_id("key"), secrets.token_urlsafe(32)
    await repository.insert_api_key(
        session, key_id=key_id, project_id=project_id, name=name, key_sha256=sha256_hex(api_key)
    )
    return key_id, api_key


async def disable_api_key(session: Session, key_id: str) -> None:
    """The key stops working at once. Raises NotFound."""
    if not await repository.disable_api_key(session, key_id):
        raise NotFound("API key not found")
