"""Field types of requests: addresses, names, texts, time zones, links, keys and secrets."""

import re
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, Field

from app.api.schemas import (
    NOT_BLANK,
    Trimmed,
    shape,
)
from app.core.addresses import MAIL_ADDRESS, is_mail_address
from app.core.web_urls import MAX_URL_LENGTH, safe_url

# The recipients that Messages allows for one mail (docs/reference/messages.md, "Recipients").
MAX_ATTENDEES = 500

# All characters that could end a line of a mail's header or an iCalendar file, including NEL and Unicode's separators.
_LINE_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_TEXT_CONTROLS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029"
# An approximation of RFC 5646 that also allows the underscore, which many programs write.
_LANGUAGE_TAG = r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*"


def _address(value: str) -> str:
    # A domain without a dot is a host of the local network.
    if not is_mail_address(value) or "." not in value.rpartition("@")[2]:
        raise ValueError("Not an e-mail address, such as ada@example.com.")
    return value


def _one_line(value: str) -> str:
    if re.search(f"[{_LINE_CONTROLS}]", value):
        raise ValueError("Line breaks and control characters are not allowed.")
    return value


def _text(value: str) -> str:
    if re.search(f"[{_TEXT_CONTROLS}]", value):
        raise ValueError("Control characters are not allowed.")
    return value


def _web_url(value: str) -> str:
    if safe_url(value) != value:
        raise ValueError("Not a web address: it must start with https:// (or http://) and have no blanks.")
    return value


@lru_cache(maxsize=1)
def _time_zones() -> frozenset[str]:
    """Return the zones of the IANA database. Finding them reads many files, so it is done once."""
    return frozenset(available_timezones() - {"localtime", "Factory"})


def _time_zone(value: str) -> str:
    if value not in _time_zones():
        raise ValueError("Not a time zone of the IANA database, such as Europe/Paris.")
    return value


def _language_tag(value: str) -> str:
    if not re.fullmatch(_LANGUAGE_TAG, value):
        raise ValueError("Not a language tag, such as fr or fr-CA.")
    return value


EmailAddress = Annotated[
    str,
    Field(min_length=1, max_length=254),
    AfterValidator(_address),
    shape(format="email", pattern=MAIL_ADDRESS, examples=["ada@example.com"]),
]
OneLine = AfterValidator(_one_line)
_ONE_LINE = f"^[^{_LINE_CONTROLS}]*$"
_ONE_LINE_NOT_BLANK = rf"^[^{_LINE_CONTROLS}]*[^{_LINE_CONTROLS}\s][^{_LINE_CONTROLS}]*$"
TextBlock = Annotated[str, AfterValidator(_text), shape(pattern=f"^[^{_TEXT_CONTROLS}]*$")]
PersonName = Annotated[
    str, Field(max_length=300), OneLine, Trimmed, shape(pattern=_ONE_LINE, examples=["Ada Lovelace"])
]
# For names of calendars and events. Types that use it add Trimmed last.
Title = Annotated[str, Field(min_length=1), OneLine, shape(pattern=_ONE_LINE_NOT_BLANK)]
EventName = Annotated[Title, Field(max_length=1000), Trimmed]
TimeZoneName = Annotated[
    str,
    AfterValidator(_time_zone),
    shape(pattern="^[A-Za-z][A-Za-z0-9_+/-]*$", examples=["Europe/Paris", "America/New_York", "UTC"]),
]
_NOT_IN_URL = r"""\s\x22'<>\\^`{|}"""
WebUrl = Annotated[
    str,
    Field(max_length=MAX_URL_LENGTH, examples=["https://meet.google.com/abc-defg-hij"]),
    AfterValidator(_web_url),
    shape(format="uri", pattern=rf"^[Hh][Tt][Tt][Pp][Ss]?://[^{_NOT_IN_URL}/?#:@][^{_NOT_IN_URL}]*$"),
]
Locale = Annotated[
    str,
    Field(max_length=35),
    AfterValidator(_language_tag),
    shape(pattern=f"^{_LANGUAGE_TAG}$", examples=["fr", "fr-CA"]),
]

# PostgreSQL cannot index longer values: an index entry has at most 2,704 bytes for all columns.
_MAX_KEY_BYTES = 2000


def _indexable(value: str) -> str:
    if len(value.encode()) > _MAX_KEY_BYTES:
        raise ValueError(f"Longer than {_MAX_KEY_BYTES} bytes in UTF-8.")
    return value


DeduplicationKey = Annotated[
    str,
    Field(min_length=1, max_length=1024, examples=["user-42"]),
    AfterValidator(_indexable),
    Trimmed,
    shape(pattern=NOT_BLANK),
]

PlatformUuid = Annotated[str, Field(min_length=1, max_length=1024), Trimmed, shape(pattern=NOT_BLANK)]

ClientId = Annotated[str, Field(min_length=1, max_length=1024), Trimmed, shape(pattern=NOT_BLANK)]

Secret = Annotated[str, Field(min_length=1, max_length=10_000), Trimmed, shape(pattern=NOT_BLANK)]

ResponseStatus = Literal["needs_action", "accepted", "tentative", "declined"]
BusyStatus = Literal["free", "tentative", "busy", "out_of_office", "working_elsewhere"]
Visibility = Literal["default", "public", "private", "confidential"]


class OrganizerRead(BaseModel):
    email: str | None
    name: str | None


class AttendeeRead(OrganizerRead):
    response_status: ResponseStatus
    is_organizer: bool
    is_optional: bool
    is_resource: bool
