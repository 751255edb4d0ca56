"""Recurrence rules of hosted events: which are accepted, and what they say about a component."""

import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from app.hosted.components import EventComponent, instant, wall
from app.ical.recurrence import Rule, RuleRefused
from app.ical.values import parse_time

MOST_OCCURRENCES = 1_000
LAST_YEAR = 2199
LAST_DAY = datetime(LAST_YEAR, 12, 31)  # noqa: DTZ001 - on the wall

_FREQUENCIES = frozenset({"DAILY", "WEEKLY", "MONTHLY", "YEARLY"})
_PARTS = frozenset(
    {"FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY", "BYMONTHDAY", "BYMONTH", "BYSETPOS", "BYYEARDAY"}
)
_NUMBER = re.compile("[0-9]{1,9}")
_YEAR = re.compile("[0-9]{4}")
_WEEKDAY = "(MO|TU|WE|TH|FR|SA|SU)"
_DAY_OF_YEAR = re.compile("[+-]?(0{0,2}[1-9]|0?[1-9][0-9]|[12][0-9]{2}|3[0-5][0-9]|36[0-6])")
_VALUES = {
    "BYDAY": re.compile(f"([+-]?(0?[1-9]|[1-4][0-9]|5[0-3]))?{_WEEKDAY}"),
    "BYMONTH": re.compile("0?[1-9]|1[0-2]"),
    "BYMONTHDAY": re.compile("[+-]?(0?[1-9]|[12][0-9]|3[01])"),
    "BYYEARDAY": _DAY_OF_YEAR,
    "BYSETPOS": _DAY_OF_YEAR,
    "WKST": re.compile(_WEEKDAY),
}
_SAME_CALENDAR = 7_600  # years: the calendar, with its weekdays, repeats every 400 years


def read_rule(lines: Sequence[str]) -> str:
    """Return the normalised rule of `recurrence`. Raises ValueError with a sentence."""
    if len(lines) != 1:
        raise ValueError("Send exactly one line, RRULE:...; to leave out an instance, delete that instance.")
    text = lines[0].strip()
    name, colon, value = text.partition(":")
    if not colon or name.upper() != "RRULE":
        raise ValueError("The line must start with RRULE:, for example RRULE:FREQ=WEEKLY;COUNT=10.")
    value = "".join(value.upper().split())
    pairs = [part.partition("=") for part in value.rstrip(";").split(";")]
    parts = {part: given for part, _, given in pairs}
    for part in ("COUNT", "INTERVAL"):
        if part in parts and not (
            _NUMBER.fullmatch(parts[part]) and 1 <= int(parts[part]) <= MOST_OCCURRENCES
        ):
            raise ValueError(f"{part} must be a number from 1 to {MOST_OCCURRENCES}.")
    if _YEAR.match(parts.get("UNTIL", "")) and int(parts["UNTIL"][:4]) > LAST_YEAR:
        raise ValueError(
            f"UNTIL may be in the year {LAST_YEAR} at the latest; a series without it has no end."
        )
    try:
        Rule(value)  # its characters
    except RuleRefused as err:
        raise ValueError(f"The rule cannot be used: {err}.") from None
    if len(parts) != len(pairs) or not all(parts.values()):
        raise ValueError("Each part of a rule must stand once, with a value.")
    unknown = sorted(parts.keys() - _PARTS)
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be used in a rule here.")
    if parts.get("FREQ") not in _FREQUENCIES:
        raise ValueError("FREQ must be DAILY, WEEKLY, MONTHLY or YEARLY.")
    if "COUNT" in parts and "UNTIL" in parts:
        raise ValueError("A rule has COUNT or UNTIL, not both.")
    _check_values(parts)
    return ";".join(f"{part}={given}" for part, given in parts.items())


def _check_values(parts: Mapping[str, str]) -> None:
    """Check what RFC 5545 section 3.3.10 forbids: guests' calendars may refuse it. Raises ValueError."""
    for part, pattern in _VALUES.items():
        values = parts[part].split(",") if part in parts else []
        if not all(pattern.fullmatch(value) for value in values):
            raise ValueError(f"{part} has a value that it cannot have.")
    frequency = parts["FREQ"]
    if frequency in {"DAILY", "WEEKLY"} and any(sign.isdigit() for sign in parts.get("BYDAY", "")):
        raise ValueError("Numbered days (BYDAY=1MO) need FREQ=MONTHLY or YEARLY.")
    if frequency == "WEEKLY" and "BYMONTHDAY" in parts:
        raise ValueError("BYMONTHDAY cannot be used with FREQ=WEEKLY.")
    if frequency != "YEARLY" and "BYYEARDAY" in parts:
        raise ValueError("BYYEARDAY needs FREQ=YEARLY.")
    if "BYSETPOS" in parts and not parts.keys() & {"BYDAY", "BYMONTHDAY", "BYMONTH", "BYYEARDAY"}:
        raise ValueError("BYSETPOS needs another part that begins with BY.")


def fit_rule(rule_text: str, component: EventComponent) -> str:
    """Return the rule with UNTIL in the form that the start requires (RFC 5545 section 3.3.10).

    Raises ValueError with a sentence, also where the start is no occurrence of the rule.
    """
    parts = dict(part.split("=", 1) for part in rule_text.split(";"))
    if "UNTIL" in parts:
        until = parse_time(parts["UNTIL"])
        if until is None or until.wall.year > LAST_YEAR:
            raise ValueError("UNTIL is not a time.")
        at = until.wall.replace(tzinfo=UTC) if until.is_utc else instant(until.wall, component.timezone)
        if until.is_date and not component.is_all_day:
            at = instant(until.wall.replace(hour=23, minute=59, second=59), component.timezone)
        if at < component.start:
            raise ValueError("UNTIL is before the event's start.")
        local = until.wall if until.is_date else wall(at, component.timezone)
        parts["UNTIL"] = f"{local:%Y%m%d}" if component.is_all_day else f"{at:%Y%m%dT%H%M%SZ}"
    text = ";".join(f"{part}={value}" for part, value in parts.items())
    start = component.local(component.start)
    # dateutil tries each day until the year 9999 for a rule that never matches, so the search starts near it.
    late = start.replace(year=start.year + _SAME_CALENDAR)
    try:
        found = next(Rule(text).walls(late, first=late, last=late), None)
    except RuleRefused as err:
        raise ValueError(f"The rule cannot be used: {err}.") from None
    if found is None:
        raise ValueError("The event's start must be an occurrence of its own rule.")
    return text


def move_until(component: EventComponent, shift: timedelta) -> str | None:
    """Return the rule with UNTIL moved by `shift`, as its instances are, so that none is lost or added.

    `fit_rule` then writes UNTIL in its form.
    """
    if component.rrule is None or (until := Rule(component.rrule).until) is None:
        return component.rrule
    shown = wall(until.wall.replace(tzinfo=UTC), component.timezone) if until.is_utc else until.wall
    parts = component.rrule.split(";")
    return ";".join(
        f"UNTIL={shown + shift:%Y%m%dT%H%M%S}" if part.startswith("UNTIL=") else part for part in parts
    )


def last_end(component: EventComponent) -> datetime | None:
    """Return when the event or series is over; None for a series without an end.

    It is not before the end of the last instance.
    """
    if component.rrule is None:
        return component.end
    rule = Rule(component.rrule)
    if rule.until is not None:
        local = rule.until.wall
        at = local.replace(tzinfo=UTC) if rule.until.is_utc else instant(local, component.timezone)
        return at + component.length
    if "COUNT=" not in component.rrule:
        return None
    start = component.local(component.start)
    last = start
    try:
        for last in rule.walls(start, first=start, last=LAST_DAY):  # noqa: B007 - the last one is meant
            pass
    except RuleRefused:
        return None
    return instant(last + component.length, component.timezone)


def keeps_instances(before: EventComponent, after: EventComponent) -> bool:
    """Return whether another rule keeps the instances of a series.

    It may end earlier or later, and may have more instances in between.
    Compares the first MOST_OCCURRENCES instances. The times of both components are the same.
    """
    if before.rrule == after.rrule:
        return True
    if before.rrule is None or after.rrule is None:
        return False
    start = before.local(before.start)
    try:
        rule = Rule(after.rrule).walls(start, first=start, last=LAST_DAY)
        new: datetime | None = start
        for old in itertools.islice(
            Rule(before.rrule).walls(start, first=start, last=LAST_DAY), MOST_OCCURRENCES
        ):
            while new is not None and new < old:
                new = next(rule, None)
            if new is None:
                return True  # it ends earlier
            if new != old:
                return False
    except RuleRefused:
        return False
    return True
