"""OpenAPI's description of what is POSTed to subscribers. The bodies themselves are made in events.py."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas import OutputTime

router = APIRouter(tags=["webhooks"])


class _Payload(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Delivery(_Payload):
    idempotency_key: str = Field(description="The same in every attempt, and in the `webhook-id` header.")
    calendar_id: str | None
    calendar_deduplication_key: str | None
    calendar_metadata: dict[str, Any] | None


class CalendarStateData(_Payload):
    """The calendar as it was when the delivery was written."""

    state: Literal["connected", "disconnected"]
    connection_failure_data: dict[str, Any] | None
    last_successful_sync_at: OutputTime | None
    last_attempted_sync_at: OutputTime | None
    test: bool | None = Field(default=None, description="true in what `POST /webhooks/{id}/test` sends.")


class ChangeCounts(_Payload):
    created: int
    updated: int
    deleted: int


class EventsUpdateData(CalendarStateData):
    """What a sync changed."""

    changes: ChangeCounts
    updated_after: OutputTime = Field(
        description="Ask `/calendar_events` with this `updated_after`: the answer has all changed events."
    )
    events: list[dict[str, Any]] | None = Field(
        default=None, description="With `include_events`: the changed events, at most 50 and 20,000 bytes."
    )
    truncated: bool | None = Field(default=None, description="Whether a change is missing from `events`.")


class BotStateData(_Payload):
    """What happened to the bot."""

    state: str
    new_state: str | None = None
    old_state: str | None = None
    join_at: OutputTime | None = None
    meeting_url: str | None = None
    event_type: str | None = None
    event_sub_type: str | None = None
    event_metadata: dict[str, Any] | None = None
    created_at: OutputTime | None = None
    test: bool | None = None


class RsvpAttendee(_Payload):
    email: str | None
    name: str | None
    is_optional: bool


class RsvpUpdateData(_Payload):
    """Who answered what."""

    response_status: str
    previous_response_status: str | None = None
    attendee: RsvpAttendee | None = None
    ical_uid: str | None = None
    scope: Literal["instance", "series", "event"] | None = None
    original_start_time: OutputTime | None = None
    answered_at: OutputTime | None = None
    test: bool | None = None


class EventsUpdateDelivery(_Delivery):
    trigger: Literal["calendar.events_update"]
    data: EventsUpdateData


class CalendarStateDelivery(_Delivery):
    trigger: Literal["calendar.state_change"]
    data: CalendarStateData


class BotStateDelivery(_Delivery):
    trigger: Literal["bot.state_change"]
    data: BotStateData
    bot_id: str
    bot_metadata: dict[str, Any] | None
    calendar_event_id: str | None = None


class RsvpUpdateDelivery(_Delivery):
    trigger: Literal["event.rsvp_update"]
    data: RsvpUpdateData
    calendar_event_id: str


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Any 2xx: delivered."},
    410: {"description": "The webhook is switched off."},
    "default": {"description": "Tried again by the retry schedule."},
}
_HEADERS = "Signed: `X-Webhook-Signature`, and `webhook-id`, `webhook-timestamp` and `webhook-signature` of Standard Webhooks."


@router.post(
    "calendar.events_update",
    operation_id="on_calendar_events_update",
    responses=_RESPONSES,
    description=_HEADERS,
)
def calendar_events_update(body: EventsUpdateDelivery) -> None:
    """A sync changed events."""


@router.post(
    "calendar.state_change",
    operation_id="on_calendar_state_change",
    responses=_RESPONSES,
    description=_HEADERS,
)
def calendar_state_change(body: CalendarStateDelivery) -> None:
    """A calendar was disconnected, or is connected again."""


@router.post(
    "bot.state_change", operation_id="on_bot_state_change", responses=_RESPONSES, description=_HEADERS
)
def bot_state_change(body: BotStateDelivery) -> None:
    """A bot changed."""


@router.post(
    "event.rsvp_update", operation_id="on_event_rsvp_update", responses=_RESPONSES, description=_HEADERS
)
def event_rsvp_update(body: RsvpUpdateDelivery) -> None:
    """A guest of a hosted event answered."""
