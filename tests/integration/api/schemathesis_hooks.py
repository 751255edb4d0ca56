"""Loaded by schemathesis (test_openapi.py): what is valid by the document is taken, what is not is refused.

JSON Schema cannot say everything. What a valid request may be refused for all the same stands in `_REFUSED_FOR`,
by the sentence that the response has; any other refusal is reported.
"""

import json
import re
from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

# Beginnings of sentences (regular expressions).
_REFUSED_FOR = (
    # What there is in the database, or how this installation is set up.
    r"This is a \w+ calendar, and access to it is read-only",
    r"A calendar of platform \w+ has no ",
    r"There is no such calendar in this project",
    r"A calendar with this deduplication key already exists",
    r"The calendar with this deduplication key is of platform",
    r"This project has an OAuth app for this platform",
    r"This project has no OAuth app for|The calendar with this deduplication key has another one",
    r"Not one of the OAuth app's redirect_uris",
    r"This event (was cancelled or deleted|was deleted|is over|has no meeting URL)|The event's calendar is disconnected",
    r"(The Messages integration|.*FEATURE_MESSAGES_INTEGRATION) is off|There is no way to send invitations",
    r"The webhook is switched off",
    r"A bot with this deduplication key|Read-only: it is the event's|A bot cannot stop following its event",
    # What the bot runner would refuse.
    r"The bot runner cannot join|(.*: )?A bot's name may not have emoji|(.*: )?A list may not have null in it",
    # Cursors are opaque: only those count that the same list gave out.
    r"The cursor is not one that this list gave out|The cursor was not made for this project",
    r"Send cursor or since, and not both",
    # One field decides on another, or times must be in order.
    r"Give calendar_event_id, or meeting_url and join_at",
    r"Leave it out when calendar_event_id is given",
    r"This field is required without calendar_event_id",
    r"Must be after start_time|An event may last a year|Must be between the years 1971",
    r"Of an all-day event, send a date|Send start_time and end_time too",
    r"This time is in the past",
    r"Must be after start\.|Must be at most \d+ days after start",
    r"More than \d+ calendars together|More than there are participants",
    r"[\w.]+: (Must not be the start|Not a time zone of the IANA database|Longer than \d+ bytes in UTF-8)",
    r".*is in the list twice",
    r"\d+: A rule with join true needs a bot|Two rules have the name|The rules are longer than",
    r"\d+\.when: attendees_min is larger|\d+\.bot: Leave out |No join rule of this calendar or project has a bot",
    # What no text may have, said once in the document's description.
    r".*NUL characters are not allowed",
    # Rules of a text that no pattern has: 600 names of zones, grammar of RRULE, host names, sizes as JSON or UTF-8.
    r"Not a time zone of the IANA database",
    r"[A-Z]+ (must be |may be |has a value|cannot be used|needs |is not a time|is before)|The rule cannot be used|Each part of a rule|.* cannot be used in a rule",
    r"A rule has COUNT or UNTIL|Numbered days|The series has no instance",
    r"Longer than 1000 characters as JSON|Longer than \d+ bytes in UTF-8|.*Nested deeper than|.*A number is too large",
    r"(\d+: )?(A URL|A redirect address) has no |A feed's address (holds no|needs a host)|Not a web address",
    r"(\d+: )?Not a valid (URL|port)|This is not a valid address|User names and passwords are not sent",
    r"The date is out of range",
)


def _sentences(response: Any) -> list[str]:
    if not isinstance(response, dict):
        return []
    return [
        sentence
        for value in response.values()
        for sentence in (value if isinstance(value, list) else [value])
        if isinstance(sentence, str)
    ]


def _has_a_number(body: Any) -> bool:
    if isinstance(body, dict):
        return any(map(_has_a_number, body.values()))
    if isinstance(body, list):
        return any(map(_has_a_number, body))
    return isinstance(body, int | float) and not isinstance(body, bool)


@schemathesis.check
def valid_requests_are_taken(ctx: Any, response: Any, case: Any) -> bool | None:
    if case.operation.label == "GET /oauth/{platform}/callback":
        return None  # only a `state` that a session of ours has just made counts
    if response.status_code == 400:
        sentences = _sentences(json.loads(response.content))
        if sentences and all(any(re.match(known, text) for known in _REFUSED_FOR) for text in sentences):
            return None
    return positive_data_acceptance(ctx, response, case)


@schemathesis.check
def invalid_requests_are_refused(ctx: Any, response: Any, case: Any) -> bool | None:
    if case.operation.label == "POST /notifications/microsoft":
        return None  # in the handshake the body does not count, and odd notifications are skipped
    if "" in (case.query or {}).values():
        return None  # a filter without a value finds nothing, whatever it is
    if "x-schemathesis-unknown-property" in (case.headers or {}):
        return None  # HTTP knows no wrong headers
    if _has_a_number(case.body):
        return None  # where a text is expected, a number is taken for its text
    return negative_data_rejection(ctx, response, case)
