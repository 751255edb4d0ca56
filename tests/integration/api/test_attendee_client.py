"""A client that reads responses as strictly as one generated from Attendee's OpenAPI document does.

The models have Attendee's fields and words alone; further fields are ignored, as such clients do.
"""

from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar

import pytest
from pydantic import AwareDatetime, BaseModel
from sqlalchemy import update

from app.core.clock import utcnow
from app.core.db import transaction
from app.core.ids import new_id
from app.models import Bot, CalendarEvent

Item = TypeVar("Item")

_BOT_STATES = Literal[
    "ready", "joining", "joined_not_recording", "joined_recording", "leaving", "post_processing", "fatal_error",
    "waiting_room", "ended", "data_deleted", "scheduled", "staged", "joined_recording_paused",
    "joining_breakout_room", "leaving_breakout_room", "joined_recording_permission_denied",
]  # fmt: skip


class BotLogEntry(BaseModel):
    type: str
    sub_type: str | None
    created_at: AwareDatetime


class AttendeeBot(BaseModel):
    id: str
    metadata: dict[str, Any] | None
    meeting_url: str
    state: _BOT_STATES
    events: list[BotLogEntry]
    transcription_state: Literal["not_started", "in_progress", "complete", "failed"]
    recording_state: Literal["not_started", "in_progress", "complete", "failed", "paused"]
    join_at: AwareDatetime | None
    deduplication_key: str | None


class AttendeeCalendar(BaseModel):
    id: str
    platform: Literal["google", "microsoft"]
    client_id: str
    platform_uuid: str | None
    state: Literal["connected", "disconnected"]
    metadata: dict[str, Any] | None
    deduplication_key: str | None
    connection_failure_data: dict[str, Any] | None
    created_at: AwareDatetime
    updated_at: AwareDatetime
    last_successful_sync_at: AwareDatetime | None
    last_attempted_sync_at: AwareDatetime | None


class AttendeeEvent(BaseModel):
    id: str
    calendar_id: str
    platform_uuid: str
    meeting_url: str | None
    start_time: AwareDatetime
    end_time: AwareDatetime
    is_deleted: bool
    attendees: list[dict[str, Any]]
    ical_uid: str | None
    name: str | None
    raw: dict[str, Any]
    bots: list[AttendeeBot]
    created_at: AwareDatetime
    updated_at: AwareDatetime


class Listed(BaseModel, Generic[Item]):
    next: str | None
    previous: str | None
    results: list[Item]


def read(model: type[BaseModel], response: Any) -> Any:
    assert response.status_code in {200, 201}, response.text
    return model.model_validate_json(response.content, strict=True)


@pytest.mark.parametrize("stored", ["scheduled", "launching", "launched", "fatal_error"])
async def test_every_response_can_be_read(api, sessions, project, stored) -> None:
    body = {"platform": "google", "client_id": 1, "client_secret": "s", "refresh_token": "r"}
    calendar = read(AttendeeCalendar, await api.post("/api/v1/calendars", json=body))
    read(AttendeeCalendar, await api.patch(f"/api/v1/calendars/{calendar.id}", json={"metadata": {"a": "1"}}))
    assert len(read(Listed[AttendeeCalendar], await api.get("/api/v1/calendars")).results) == 1
    event_id = new_id("evt")
    start = utcnow() + timedelta(hours=1)
    async with transaction(sessions) as session:
        session.add(
            CalendarEvent(
                id=event_id, project_id=project.id, calendar_id=calendar.id, platform_uuid="e", content_hash=b"",
                meeting_url="https://zoom.us/j/5551112222", start_time=start, end_time=start + timedelta(hours=1),
                attendees=[], raw={}, updated_at=utcnow() - timedelta(minutes=1),
            )
        )  # fmt: skip
    order = {"bot_name": "x", "calendar_event_id": event_id, "deduplication_key": 7}
    made = await api.post("/api/v1/bots", json=order)
    bot = read(AttendeeBot, made)
    read(AttendeeBot, await api.patch(f"/api/v1/bots/{bot.id}", json={"bot_name": "y"}))
    log = [*made.json()["events"], {**made.json()["events"][0], "type": stored}]
    async with transaction(sessions) as session:
        await session.execute(update(Bot).values(state=stored, events=log))
    (of_list,) = read(Listed[AttendeeBot], await api.get("/api/v1/bots")).results
    (event,) = read(Listed[AttendeeEvent], await api.get("/api/v1/calendar_events")).results
    assert event.bots == [of_list] == [read(AttendeeBot, await api.get(f"/api/v1/bots/{bot.id}"))]
    assert read(AttendeeEvent, await api.get(f"/api/v1/calendar_events/{event_id}")) == event
