"""Requests that write events of hosted calendars."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.api.fields import (
    MAX_ATTENDEES,
    EmailAddress,
    EventName,
    Locale,
    PersonName,
    TextBlock,
    TimeZoneName,
    WebUrl,
)
from app.api.pages import ShortText
from app.api.schemas import InputModel, InputTime, NotNull, UpdateModel, shape
from app.core.addresses import fold_address
from app.hosted.rules import read_rule


class AttendeeInput(InputModel):
    """Person to invite."""

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
        default=False, description="If true, the times are dates, `2026-11-24`, or midnights of `timezone`."
    )
    timezone: TimeZoneName | None = Field(
        default=None, examples=["Europe/Paris"], description="Default: the calendar's."
    )
    location: Annotated[TextBlock, Field(max_length=2000)] | None = None
    description: Annotated[TextBlock, Field(max_length=8000)] | None = None
    meeting_url: WebUrl | None = None
    attendees: Annotated[list[AttendeeInput], AfterValidator(_all_different)] = Field(
        default=[], max_length=MAX_ATTENDEES
    )
    recurrence: Annotated[_RuleLines | None, AfterValidator(_rule)] = Field(
        default=None,
        examples=[["RRULE:FREQ=WEEKLY;COUNT=10"]],
        description="One RRULE line (RFC 5545) makes it a series; null or an empty list: one event.",
    )
    send_invitations: bool = Field(default=True, description="Whether the guests concerned get a mail.")


class CalendarEventCreate(_EventFields):
    """Event of a calendar that is hosted here (platform `local`)."""

    calendar_id: ShortText
    name: EventName
    start_time: InputTime
    end_time: InputTime = Field(description="Exclusive, also for all-day events.")


class CalendarEventUpdate(_EventFields, UpdateModel):
    """Fields that are left out stay as they are. With `start_time` alone, the length stays."""

    name: Annotated[EventName | None, NotNull] = None
    start_time: Annotated[InputTime | None, NotNull] = None
    end_time: Annotated[InputTime | None, NotNull] = None
    timezone: Annotated[TimeZoneName | None, NotNull] = None


class ScopeQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scope: Literal["instance", "series"] = Field(
        default="instance", description="For a series: this instance, or all of them."
    )


class DeleteQuery(ScopeQuery):
    send_invitations: bool = Field(default=True, description="Whether the attendees get a mail.")
