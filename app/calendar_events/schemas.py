"""Requests and answers about events (contract 4)."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.api.fields import (
    MOST_ATTENDEES,
    EmailAddress,
    EventName,
    Locale,
    PersonName,
    TextBlock,
    TimeZoneName,
    WebUrl,
)
from app.api.pages import ListQuery, ShortText
from app.api.schemas import InputModel, InputTime, NotNull, OutputTime, UpdateModel, shape
from app.bots.schemas import BotRead
from app.core.addresses import fold_address
from app.hosted.expand import read_rule

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
ResponseStatus = Literal["needs_action", "accepted", "tentative", "declined"]


def _known_ordering(value: Any) -> Any:
    if value not in get_args(OrderingName):
        # The words of Attendee, whose clients may look for them.
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


class AttendeeInput(InputModel):
    """Someone to invite."""

    email: EmailAddress
    name: PersonName | None = None
    is_optional: bool = False
    locale: Locale | None = Field(
        default=None, description="Language of the mails; null: the calendar's `locale`."
    )


def _all_different(attendees: list[AttendeeInput]) -> list[AttendeeInput]:
    seen: set[str] = set()
    for person in attendees:
        key = fold_address(person.email)
        if key in seen:
            raise ValueError(f"{person.email} is in the list twice.")
        seen.add(key)
    return attendees


def _rule(lines: list[str] | None) -> list[str] | None:
    return [read_rule(lines)] if lines else None


_RuleLines = Annotated[
    list[Annotated[str, Field(max_length=2000), shape(pattern=r"^\s*[Rr][Rr][Uu][Ll][Ee]:")]],
    shape(maxItems=1),
]


class _EventFields(InputModel):
    is_all_day: bool = Field(
        default=False, description="Then the times are dates, `2026-11-24`, or midnights of `timezone`."
    )
    timezone: TimeZoneName | None = Field(
        default=None, examples=["Europe/Paris"], description="Default: the calendar's."
    )
    location: Annotated[TextBlock, Field(max_length=2000)] | None = None
    description: Annotated[TextBlock, Field(max_length=8000)] | None = None
    meeting_url: WebUrl | None = None
    attendees: Annotated[list[AttendeeInput], AfterValidator(_all_different)] = Field(
        default=[], max_length=MOST_ATTENDEES
    )
    recurrence: Annotated[_RuleLines | None, AfterValidator(_rule)] = Field(
        default=None,
        examples=[["RRULE:FREQ=WEEKLY;COUNT=10"]],
        description="One RRULE line (RFC 5545) makes it a series; null or an empty list: one event.",
    )
    send_invitations: bool = Field(default=True, description="Whether those affected are told by mail.")


class CalendarEventCreate(_EventFields):
    """An event of a calendar that is hosted here (platform `local`)."""

    calendar_id: ShortText
    name: EventName
    start_time: InputTime
    end_time: InputTime = Field(description="Exclusive, also of all-day events.")


class CalendarEventUpdate(_EventFields, UpdateModel):
    """What is left out stays; of `start_time` alone, the length stays."""

    name: Annotated[EventName | None, NotNull] = None
    start_time: Annotated[InputTime | None, NotNull] = None
    end_time: Annotated[InputTime | None, NotNull] = None
    timezone: Annotated[TimeZoneName | None, NotNull] = None


class ScopeQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scope: Literal["instance", "series"] = Field(
        default="instance", description="Of a series: this instance, or all of them."
    )


class DeleteQuery(ScopeQuery):
    send_invitations: bool = Field(default=True, description="Whether the attendees are told by mail.")


class OrganizerRead(BaseModel):
    email: str | None
    name: str | None


class AttendeeRead(OrganizerRead):
    response_status: ResponseStatus
    is_organizer: bool
    is_optional: bool
    is_resource: bool


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
        description="Gone at the provider. The row stays, so that clients see the change."
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
