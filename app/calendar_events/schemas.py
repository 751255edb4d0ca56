"""Requests and responses about events."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.api.fields import (
    AttendeeRead,
    OrganizerRead,
    ResponseStatus,
)
from app.api.pages import ListQuery, ShortText
from app.api.schemas import InputTime, OutputTime
from app.bots.schemas import BotRead
from app.events.data import BusyStatus, EventType, Visibility

OrderingName = Literal[
    "-updated_at",
    "updated_at",
    "start_time",
    "-start_time",
    "end_time",
    "-end_time",
    "created_at",
    "-created_at",
]


def _known_ordering(value: Any) -> Any:
    if value not in get_args(OrderingName):
        # The text of the same error of Attendee, whose clients may look for it.
        sentence = f"Invalid ordering. Allowed values: {', '.join(get_args(OrderingName))}"
        raise PydanticCustomError("whole_sentence", "{sentence}", {"sentence": sentence})
    return value


class CalendarEventsQuery(ListQuery):
    """Times: ISO 8601 with any offset; without one they are UTC."""

    calendar_id: ShortText | None = None
    calendar_deduplication_key: ShortText | None = None
    event_id: ShortText | None = None
    ical_uid: ShortText | None = None
    updated_after: InputTime | None = Field(
        default=None, description="Changed at or after; see `updated_at`."
    )
    updated_at_gte: InputTime | None = Field(default=None, description="The same as `updated_after`.")
    start_time_gte: InputTime | None = None
    end_time_lte: InputTime | None = None
    is_deleted: bool | None = None
    ordering: Annotated[OrderingName, BeforeValidator(_known_ordering)] = "-updated_at"


class CalendarEventRead(BaseModel):
    """An event, or one instance of a series. Documents what app/calendar_events/service.py writes."""

    model_config = ConfigDict(title="CalendarEvent")

    id: str = Field(examples=["evt_h3Gk29sLqPzX81Ab"])
    calendar_id: str
    platform_uuid: str = Field(description="The provider's id; stable, also for instances of series.")
    meeting_url: str | None = Field(
        description="The join link as written, unwrapped from Safe Links and the like."
    )
    meeting_platform: str | None = Field(examples=["zoom"])
    start_time: OutputTime | None
    end_time: OutputTime | None = Field(description="Exclusive.")
    is_deleted: bool = Field(
        description="Deleted at the provider. The row stays, so that clients see the change."
    )
    attendees: list[AttendeeRead]
    ical_uid: str | None
    name: str | None
    raw: dict[str, Any] = Field(description="The provider's own object, long texts cut at 8,000 characters.")
    bots: list[BotRead]
    created_at: OutputTime
    updated_at: OutputTime = Field(
        description="Grows in the order in which changes become visible: keep the largest one seen, and ask for "
        "`updated_after` it."
    )
    is_all_day: bool
    timezone: str | None
    location: str | None
    description: str | None
    organizer: OrganizerRead | None
    response_status: ResponseStatus | None = Field(description="Of the calendar's owner.")
    recurring_event_id: str | None
    original_start_time: OutputTime | None
    busy_status: BusyStatus = Field(description="Whether the time counts as busy (see `/free_busy`).")
    visibility: Visibility
    event_type: EventType
    etag: str | None = Field(description="The provider's version of the event. Null where it has none.")
