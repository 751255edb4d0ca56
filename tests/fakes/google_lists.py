"""Parameters of the lists of the fake Google, and the items that they select.

See docs/reference/google.md, "Event lists" and "Sync tokens".
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from tests.fakes.google_http import bad
from tests.fakes.google_store import EVERYWHERE, Calendar, Item, Span

EVENT_TYPES = {"default", "birthday", "focusTime", "fromGmail", "outOfOffice", "workingLocation"}
COMMON_PARAMETERS = {"alt", "prettyPrint", "quotaUser", "key"}
FORBIDDEN_WITH_SYNC_TOKEN = {
    "iCalUID", "orderBy", "privateExtendedProperty", "q", "sharedExtendedProperty", "timeMin", "timeMax", "updatedMin",
}  # fmt: skip
LIST_PARAMETERS = FORBIDDEN_WITH_SYNC_TOKEN | {
    "alwaysIncludeEmail", "eventTypes", "maxAttendees", "maxResults", "pageToken", "showDeleted",
    "showHiddenInvitations", "singleEvents", "syncToken", "timeZone",
}  # fmt: skip
_BOUND = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def refuse_unknown(query: Mapping[str, str], known: set[str]) -> None:
    for name in query:
        if name not in known:
            raise bad(f"Unknown parameter {name}.", reason="invalidParameter", location=name)


def integer(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise bad(f"Invalid integer value for {name}.", reason="invalidParameter", location=name) from None


def bound_of(query: Mapping[str, str], name: str) -> float | None:
    """A time bound in seconds; milliseconds are ignored ("Event lists")."""
    value = query.get(name)
    if value is None:
        return None
    if not _BOUND.fullmatch(value):
        raise bad("Bad Request", reason="badRequest", location=name)
    return datetime.fromisoformat(value.upper()).replace(microsecond=0).timestamp()


def window_of(query: Mapping[str, str]) -> Span:
    first, last = bound_of(query, "timeMin"), bound_of(query, "timeMax")
    return EVERYWHERE[0] if first is None else first, EVERYWHERE[1] if last is None else last


def parameters_of(query: Mapping[str, str], *, without: set[str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in query.items() if name not in without)


def sync_parameters(query: Mapping[str, str]) -> list[list[str]]:
    """What must stay the same from the initial sync on; `showDeleted` left out and true differ, too."""
    free = {"maxResults", "pageToken", "syncToken", "timeMin", "timeMax", "updatedMin", *COMMON_PARAMETERS}
    return sorted([name, value] for name, value in parameters_of(query, without=free))


def filtered(items: list[Item], query: Mapping[str, str]) -> list[Item]:
    if "iCalUID" in query:
        items = [item for item in items if item.data().get("iCalUID") == query["iCalUID"]]
    if "q" in query:
        items = [item for item in items if query["q"].lower() in str(item.data().get("summary", "")).lower()]
    if "eventTypes" in query:
        items = [item for item in items if item.data().get("eventType", "default") == query["eventTypes"]]
    for kind in ("private", "shared"):
        wanted = query.get(f"{kind}ExtendedProperty")
        if wanted is not None:
            name, _, value = wanted.partition("=")
            items = [
                item
                for item in items
                if item.data().get("extendedProperties", {}).get(kind, {}).get(name) == value
            ]
    updated_min = bound_of(query, "updatedMin")
    if updated_min is not None:
        items = [
            item
            for item in items
            if datetime.fromisoformat(item.data()["updated"]).timestamp() >= updated_min
        ]
    if query.get("orderBy") == "startTime":
        items = sorted(items, key=lambda item: item.span[0])
    if query.get("orderBy") == "updated":
        items = sorted(items, key=lambda item: item.rev)
    return items


def list_head(calendar: Calendar, query: Mapping[str, str]) -> bytes:
    return orjson.dumps(
        {
            "kind": "calendar#events",
            "etag": f'"p33g{calendar.rev}"',
            "summary": calendar.summary,
            "description": "",
            "updated": calendar.now().strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "timeZone": query.get("timeZone", calendar.time_zone),
            "accessRole": calendar.access_role,
            "defaultReminders": [],
        }
    )


def calendar_entry(calendar: Calendar) -> dict[str, Any]:
    entry = {
        "kind": "calendar#calendarListEntry",
        "etag": '"1500000000000000"',
        "id": calendar.id,
        "summary": calendar.summary,
        "timeZone": calendar.time_zone,
        "accessRole": calendar.access_role,
        "selected": True,
    }
    return entry | ({"primary": True} if calendar.is_primary else {})
