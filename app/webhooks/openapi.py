"""OpenAPI description of the webhooks: one operation for each trigger. payloads.py builds the bodies."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.api.fields import AttendeeRead, BusyStatus, OrganizerRead, ResponseStatus, Visibility
from app.api.schemas import OutputTime
from app.models.bot import EntryType
from app.models.bot import State as BotState
from app.models.calendar import State as CalendarState
from app.webhooks.merge import MOST_EVENTS, MOST_EVENTS_BYTES
from app.webhooks.payloads import Change, Trigger, sample_body

router = APIRouter(tags=["webhooks"])

_EXAMPLE_TIME = datetime(2026, 1, 31, 9, tzinfo=UTC)


class _Payload(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Delivery(_Payload):
    idempotency_key: str = Field(description="The same in every attempt, and in the `webhook-id` header.")
    calendar_id: str | None = Field(examples=["cal_h3Gk29sLqPzX81Ab"])
    calendar_deduplication_key: str | None = Field(examples=["user-42"])
    calendar_metadata: dict[str, Any] | None = Field(examples=[{"user_id": "42"}])


_IS_TEST = Field(default=None, description="true in what `POST /webhooks/{id}/test` sends, else left out.")


class ConnectionFailureData(_Payload):
    """Why the calendar was disconnected."""

    error: str = Field(description="A sentence for people; may change.")
    code: str = Field(description="A stable word.", examples=["invalid_grant"])
    timestamp: OutputTime


class CalendarStateData(_Payload):
    """The calendar as it was when the delivery was written."""

    state: CalendarState
    connection_failure_data: ConnectionFailureData | None
    last_successful_sync_at: OutputTime | None
    last_attempted_sync_at: OutputTime | None
    test: bool | None = _IS_TEST


class ChangeCounts(_Payload):
    created: int
    updated: int
    deleted: int


class ChangedField(_Payload):
    """A field's values before and after the change."""

    old: Any
    new: Any


class _EventContent(_Payload):
    id: str = Field(examples=["evt_h3Gk29sLqPzX81Ab"])
    name: str | None = Field(examples=["Algebra"])
    start_time: OutputTime | None
    end_time: OutputTime | None
    is_all_day: bool
    timezone: str | None = Field(examples=["Europe/Paris"])
    location: str | None
    description: str | None
    meeting_url: str | None
    response_status: ResponseStatus | None = Field(description="Of the calendar's owner.")
    attendees: list[AttendeeRead]
    busy_status: BusyStatus
    visibility: Visibility
    event_type: Literal["default", "out_of_office", "focus_time", "working_location", "birthday"]
    is_deleted: bool


_CHANGED_FIELDS: Any = Field(
    description="By name, the fields that changed; empty for a created event.",
    examples=[{"name": {"old": "Analysis", "new": "Algebra"}}],
)


class ChangedEventData(_EventContent):
    """The event after the change; of a deleted one, as it was."""

    change: Change
    changed_fields: dict[str, ChangedField] = _CHANGED_FIELDS


class EventData(_EventContent):
    """The event after the change; of a deleted one, as it was."""

    calendar_id: str = Field(examples=["cal_h3Gk29sLqPzX81Ab"])
    platform_uuid: str = Field(description="The provider's id of the event.")
    ical_uid: str | None
    organizer: OrganizerRead | None
    meeting_platform: str | None = Field(examples=["zoom"])
    recurring_event_id: str | None
    original_start_time: OutputTime | None
    updated_at: OutputTime = Field(description="As `/calendar_events` shows it for this state of the event.")


class SingleEventData(_Payload):
    """One event that changed."""

    event: EventData
    changed_fields: dict[str, ChangedField] = _CHANGED_FIELDS
    test: bool | None = _IS_TEST


class StartingSoonData(_Payload):
    """An event that starts soon."""

    event: EventData
    starting_soon_minutes: int = Field(description="The webhook's own number.", examples=[10])
    test: bool | None = _IS_TEST


class EventsUpdateData(CalendarStateData):
    """What a sync changed."""

    changes: ChangeCounts
    updated_after: OutputTime = Field(
        description="Ask `/calendar_events` with this `updated_after`: the response has all changed events."
    )
    events: list[ChangedEventData] | None = Field(
        default=None,
        description=f"With `include_events`: the changed events, at most {MOST_EVENTS} and {MOST_EVENTS_BYTES:,} bytes.",
    )
    truncated: bool | None = Field(
        default=None, description="With `include_events`: whether a change is missing from `events`."
    )


class BotStateData(_Payload):
    """What happened to the bot."""

    state: BotState | Literal["deleted"]
    new_state: BotState | Literal["deleted"] = Field(description="The same as `state`.")
    old_state: BotState
    join_at: OutputTime
    meeting_url: str | None
    event_type: EntryType
    event_sub_type: str | None = Field(examples=["event_cancelled"])
    event_metadata: dict[str, Any] | None
    created_at: OutputTime
    test: bool | None = _IS_TEST


class RsvpAttendee(_Payload):
    email: str = Field(examples=["bob@example.org"])
    name: str | None
    is_optional: bool


class RsvpUpdateData(_Payload):
    """A guest's reply."""

    response_status: ResponseStatus
    previous_response_status: ResponseStatus
    attendee: RsvpAttendee
    ical_uid: str
    scope: Literal["instance", "series", "event"]
    original_start_time: OutputTime | None = Field(description="Of an instance: its original start.")
    answered_at: OutputTime | None
    test: bool | None = _IS_TEST


class EventsUpdateDelivery(_Delivery):
    trigger: Literal["calendar.events_update"]
    data: EventsUpdateData


class CalendarStateDelivery(_Delivery):
    trigger: Literal["calendar.state_change"]
    data: CalendarStateData


class BotStateDelivery(_Delivery):
    trigger: Literal["bot.state_change"]
    data: BotStateData
    bot_id: str = Field(examples=["bot_h3Gk29sLqPzX81Ab"])
    bot_metadata: dict[str, Any] | None
    calendar_event_id: str | None = Field(
        default=None, description="The event that the bot follows; left out where it follows none."
    )


class RsvpUpdateDelivery(_Delivery):
    trigger: Literal["event.rsvp_update"]
    data: RsvpUpdateData
    calendar_event_id: str


class _EventDelivery(_Delivery):
    calendar_event_id: str = Field(examples=["evt_h3Gk29sLqPzX81Ab"])


class EventCreatedDelivery(_EventDelivery):
    trigger: Literal["event.created"]
    data: SingleEventData


class EventUpdatedDelivery(_EventDelivery):
    trigger: Literal["event.updated"]
    data: SingleEventData


class EventDeletedDelivery(_EventDelivery):
    trigger: Literal["event.deleted"]
    data: SingleEventData


class StartingSoonDelivery(_EventDelivery):
    trigger: Literal["event.starting_soon"]
    data: StartingSoonData


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Any 2xx: delivered."},
    410: {"description": "The webhook is disabled."},
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
    """A guest of a hosted event replied."""


def _example(trigger: Trigger) -> Any:
    """The body of a test message, without what only tests have."""
    body = orjson.loads(
        sample_body(
            idempotency_key="4b0a1c5e-6a3e-4a57-9f0e-7a2f5f5b8d10", trigger=trigger, now=_EXAMPLE_TIME
        )
    )
    del body["data"]["test"]
    return Body(examples=[body])


@router.post("event.created", operation_id="on_event_created", responses=_RESPONSES, description=_HEADERS)
def event_created(body: Annotated[EventCreatedDelivery, _example("event.created")]) -> None:
    """An event is new, or is there again."""


@router.post("event.updated", operation_id="on_event_updated", responses=_RESPONSES, description=_HEADERS)
def event_updated(body: Annotated[EventUpdatedDelivery, _example("event.updated")]) -> None:
    """An event changed."""


@router.post("event.deleted", operation_id="on_event_deleted", responses=_RESPONSES, description=_HEADERS)
def event_deleted(body: Annotated[EventDeletedDelivery, _example("event.deleted")]) -> None:
    """An event was deleted or cancelled."""


@router.post(
    "event.starting_soon", operation_id="on_event_starting_soon", responses=_RESPONSES, description=_HEADERS
)
def event_starting_soon(body: Annotated[StartingSoonDelivery, _example("event.starting_soon")]) -> None:
    """An event starts in a few minutes. Sent once for an event and start time."""
