"""Invariants of every sync, whatever the provider (docs/reference/http-api.md, "No change is missed")."""

from typing import Any

from sqlalchemy import text

from app.core.db import Sessions
from app.models import CalendarEvent
from app.sync.engine import SyncEngine
from tests import factories


def _content(event: CalendarEvent) -> dict[str, Any]:
    return {
        column.name: getattr(event, column.name)
        for column in CalendarEvent.__table__.columns
        # A new etag alone is stored, and is no change.
        if column.name not in {"updated_at", "content_hash", "etag"}
    }


async def listen_to_changes(sessions: Sessions, project_id: str) -> None:
    """Subscribe an endpoint to every change of the project, once."""
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO webhook_subscriptions (id, project_id, url, triggers, secrets_sealed) VALUES"
                " ('webhook_0000000000000000', :project_id, 'https://example.com', '{calendar.events_update}', 'x')"
                " ON CONFLICT DO NOTHING"
            ),
            {"project_id": project_id},
        )


async def checked_sync(engine: SyncEngine, sessions: Sessions, calendar_id: str) -> None:
    """One sync. No unchanged event moves, changed ones move ahead of all, and the webhook counts just those.

    Needs `listen_to_changes`.
    """
    before = await factories.load_events(sessions, calendar_id)
    highest = max((event.updated_at for event in before.values()), default=None)
    await factories.sync_now(engine, sessions, calendar_id)
    moved = 0
    for key, event in (await factories.load_events(sessions, calendar_id)).items():
        old = before.get(key)
        if old is not None and _content(old) == _content(event):
            assert event.updated_at == old.updated_at, "an unchanged event moved"
            continue
        moved += 1
        assert highest is None or event.updated_at > highest, "a change did not move ahead"
    assert await _announced(sessions, calendar_id) == moved, "the webhook counts what moved"


async def _announced(sessions: Sessions, calendar_id: str) -> int:
    """The sum of the `changes` that webhooks announced since the last time."""
    async with sessions.begin() as session:
        changes = await session.scalars(
            text(
                "DELETE FROM webhook_deliveries WHERE calendar_id = :id"
                " RETURNING convert_from(body, 'UTF8')::json -> 'data' -> 'changes'"
            ),
            {"id": calendar_id},
        )
        return sum(sum(counts.values()) for counts in changes)
