"""Requests and responses of free/busy times and of availability."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.config import JsonDict

from app.api.fields import DeduplicationKey, TimeZoneName
from app.api.schemas import InputModel, InputTime, OutputTime, TimeText, shape

MAX_CALENDARS = 200
MAX_PARTICIPANTS = 50
MAX_DAYS = 92
_MAX_HOURS = 14
_MAX_IGNORED = 1000
_MAX_SLOTS = 10_000
_WEEK = 7 * 24 * 60

BusyKind = Literal["busy", "tentative", "out_of_office"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

CalendarName = Annotated[
    DeduplicationKey, Field(description="The id or the deduplication key of a calendar of the project.")
]
_Start = Annotated[InputTime, Field(examples=["2027-03-01T00:00:00Z"])]
_End = Annotated[
    InputTime,
    Field(
        examples=["2027-03-29T00:00:00Z"], description=f"Exclusive; at most {MAX_DAYS} days after `start`."
    ),
]

_FREE_BUSY: JsonDict = {
    "calendars": ["cal_h3Gk29sLqPzX81Ab", "user-42"],
    "start": "2027-03-01T00:00:00Z",
    "end": "2027-03-08T00:00:00Z",
}
_AVAILABILITY: JsonDict = {
    "participants": [
        {
            "calendars": ["user-42"],
            "open_hours": [
                {
                    "days": ["mon", "tue", "wed", "thu", "fri"],
                    "start": "09:00",
                    "end": "17:00",
                    "timezone": "Europe/Paris",
                }
            ],
        },
        {"calendars": ["user-43"], "required": False},
    ],
    "start": "2027-03-01T00:00:00Z",
    "end": "2027-03-08T00:00:00Z",
    "duration_minutes": 30,
    "minimum_free": 1,
}


class FreeBusyRequest(InputModel):
    """Calendars, and the range of time that matters."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FREE_BUSY]})

    calendars: list[CalendarName] = Field(min_length=1, max_length=MAX_CALENDARS)
    start: _Start
    end: _End
    live: bool = Field(
        default=False, description="Whether the provider is asked for what the synced events do not cover."
    )


class BusyRead(BaseModel):
    start: TimeText
    end: TimeText
    status: BusyKind


class FreeBusyResult(BaseModel):
    """When one calendar is busy, and what is known of it."""

    calendar_id: str = Field(examples=["cal_h3Gk29sLqPzX81Ab"])
    deduplication_key: str | None
    busy: list[BusyRead] = Field(
        description="Sorted, cut to the range, and merged: where two overlap, `out_of_office` wins over `busy`, and "
        "`busy` over `tentative`."
    )
    as_of: OutputTime | None = Field(description="The last successful sync; null before the first one.")
    is_stale: bool = Field(
        description="The last successful sync is older than twice the sync interval, the calendar is disconnected, or "
        "its syncs fail."
    )
    covered_from: OutputTime | None = Field(
        description="Before this time, nothing is known. Null: there is no such time, or nothing is known at all."
    )
    covered_until: OutputTime | None = Field(
        description="From this time on, nothing is known. Null: nothing is known at any time."
    )
    source: Literal["mirror", "live"] = Field(description="`live` once the provider has added anything.")
    error: str | None = Field(
        description="A sentence, if nothing is known of a part of the range that `covered_until` does not show, or if "
        "the provider could not be asked.",
        examples=[None],
    )


class FreeBusyRead(BaseModel):
    results: list[FreeBusyResult] = Field(description="In the order of `calendars`.")


_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")


def minutes_of(clock: str) -> int:
    """Return the minutes after midnight of "HH:MM"."""
    return int(clock[:2]) * 60 + int(clock[3:])


def _clock(value: str) -> str:
    if not _CLOCK.fullmatch(value):
        raise ValueError("Not a time of day as HH:MM, such as 09:00.")
    return value


def _clock_of_end(value: str) -> str:
    return value if value == "24:00" else _clock(value)


class OpenHours(InputModel):
    """Wall-clock times on some days of the week."""

    days: list[Weekday] = Field(
        min_length=1,
        max_length=7,
        description="The days on which the hours start.",
        examples=[["mon", "tue"]],
    )
    start: Annotated[
        str, AfterValidator(_clock), shape(pattern=r"^([01]\d|2[0-3]):[0-5]\d$", examples=["09:00"])
    ]
    end: Annotated[
        str,
        AfterValidator(_clock_of_end),
        Field(description="Until 24:00. An end before the start is on the next day."),
        shape(pattern=r"^(([01]\d|2[0-3]):[0-5]\d|24:00)$", examples=["17:00"]),
    ]
    timezone: TimeZoneName


class Participant(InputModel):
    """Someone who is free when all of their calendars are, within their open hours."""

    calendars: list[CalendarName] = Field(min_length=1, max_length=MAX_CALENDARS)
    required: bool = Field(default=True, description="Whether no slot is offered without this participant.")
    open_hours: list[OpenHours] | None = Field(
        default=None, min_length=1, max_length=_MAX_HOURS, description="Without them, always open."
    )


# Divisors of an hour, and whole hours.
_INTERVALS = [*(minutes for minutes in range(1, 60) if 60 % minutes == 0), *range(60, 24 * 60 + 1, 60)]


def _interval(value: int) -> int:
    if value not in _INTERVALS:
        raise ValueError("Must be a divisor of 60, or whole hours up to 1440 minutes.")
    return value


def _minimum(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError('Must be "all", or a number of participants from 1.')


class AvailabilityRequest(InputModel):
    """Who is to meet, and when it may be."""

    model_config = ConfigDict(json_schema_extra={"examples": [_AVAILABILITY]})

    participants: list[Participant] = Field(
        min_length=1,
        max_length=MAX_PARTICIPANTS,
        description=f"They have at most {MAX_CALENDARS} calendars together.",
    )
    start: _Start
    end: _End
    duration_minutes: int = Field(ge=1, le=MAX_DAYS * 24 * 60, examples=[30])
    interval_minutes: Annotated[int, AfterValidator(_interval), shape(enum=_INTERVALS)] = Field(
        default=15,
        description="Slots start at multiples of it, counted from the full hour in UTC. Whole hours are counted from "
        "midnight in UTC.",
    )
    buffer_before_minutes: int = Field(
        default=0, ge=0, le=_WEEK, description="Before the slot: clear of events, also before `start`."
    )
    buffer_after_minutes: int = Field(
        default=0, ge=0, le=_WEEK, description="After the slot: clear of events, also after `end`."
    )
    minimum_free: Annotated[
        Literal["all"] | int,
        PlainValidator(_minimum),
        WithJsonSchema({"anyOf": [{"const": "all", "type": "string"}, {"type": "integer", "minimum": 1}]}),
    ] = Field(
        default="all",
        description='How many participants must be free, optional ones included; "all" is every one. Required '
        "participants must always be free.",
    )
    tentative_is_busy: bool = True
    ignore_event_ids: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(
        default_factory=list,
        max_length=_MAX_IGNORED,
        description="Events that do not count, for example the one that is to be moved.",
    )
    limit: int = Field(default=500, ge=1, le=_MAX_SLOTS)


class SlotRead(BaseModel):
    start: TimeText
    end: TimeText
    free: list[int] = Field(description="The participants who are free, by their index.", examples=[[0, 1]])


class AvailabilityRead(BaseModel):
    """The slots, and what is known of the calendars."""

    slots: list[SlotRead]
    as_of: OutputTime | None = Field(
        description="The oldest last successful sync of the required calendars; null if one has never been synced."
    )
    is_stale: bool = Field(description="Whether any of the calendars is stale; see `/free_busy`.")
    covered_until: OutputTime | None = Field(
        description="The earliest of the required calendars; null if nothing is known of one. No slot lies beyond it."
    )
    truncated: bool = Field(description="Whether there are more slots than `limit`.")
