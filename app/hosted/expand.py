"""Pure: from the components of a hosted event to the rows that applications see, and what a rule may look like.

Series are expanded by app/ical/series.py, as those of feeds are: hosted and connected calendars agree about keys,
clock changes and identities.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from app.core.addresses import fold_address
from app.events.data import RemoteAttendee, RemoteEvent, RemoteOrganizer, Window
from app.events.raw import dump_raw
from app.hosted.components import EventComponent, instant, wall
from app.ical.moments import Moment
from app.ical.recurrence import Rule, RuleRefused
from app.ical.series import Occurrence, expand_series, find_next_occurrence
from app.ical.timezones import Zone
from app.ical.values import parse_time
from app.invitations.repository import Undelivered
from app.itip.event import Person
from app.meeting_links.extract import MeetingHosts, find_meeting_link

MOST_OCCURRENCES = 1_000
LAST_YEAR = 2199
_LAST_DAY = datetime(LAST_YEAR, 12, 31)  # noqa: DTZ001 - on the wall

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
_SAME_CALENDAR = 7_600  # years: the calendar repeats itself, weekdays too, every 400


def read_rule(lines: Sequence[str]) -> str:
    """The rule in `recurrence`, normalised. Raises ValueError with a sentence."""
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
    """What RFC 5545 3.3.10 forbids, the guests' calendars may refuse. Raises ValueError with a sentence."""
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
    """The rule for this start: UNTIL in the form that RFC 5545 3.3.10 asks for. Raises ValueError with a sentence."""
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
    # Of a rule that never matches, each day until the year 9999 is looked at: so start near it.
    late = start.replace(year=start.year + _SAME_CALENDAR)
    try:
        found = next(Rule(text).walls(late, first=late, last=late), None)
    except RuleRefused as err:
        raise ValueError(f"The rule cannot be used: {err}.") from None
    if found is None:
        raise ValueError("The event's start must be an occurrence of its own rule.")
    return text


def move_until(component: EventComponent, shift: timedelta) -> str | None:
    """The rule with UNTIL moved as much as the instances, so that none is lost or added; `fit_rule` gives it its form."""
    if component.rrule is None or (until := Rule(component.rrule).until) is None:
        return component.rrule
    shown = wall(until.wall.replace(tzinfo=UTC), component.timezone) if until.is_utc else until.wall
    parts = component.rrule.split(";")
    return ";".join(
        f"UNTIL={shown + shift:%Y%m%dT%H%M%S}" if part.startswith("UNTIL=") else part for part in parts
    )


def last_end(component: EventComponent) -> datetime | None:
    """When an event is over for good; None for a series without an end. Not before the last instance's end."""
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
        for last in rule.walls(start, first=start, last=_LAST_DAY):  # noqa: B007 - the last one is meant
            pass
    except RuleRefused:
        return None
    return instant(last + component.length, component.timezone)


def expand(
    master: EventComponent,
    overrides: Sequence[EventComponent],
    window: Window,
    *,
    organizer: Person,
    owner_email: str | None,
    hosts: MeetingHosts,
    undelivered: Sequence[Undelivered],
) -> list[RemoteEvent]:
    """The rows of an event: itself; or the instances of a series in the window, and the next one if that is later.

    A changed instance is there wherever it was moved to. `undelivered`: the mails that failed.
    """
    if master.is_cancelled:
        return []

    def row_of(component: EventComponent, platform_uuid: str) -> RemoteEvent:
        unreached = [
            mail
            for mail in undelivered
            if mail.recurrence_id is None or mail.recurrence_id == component.recurrence_id
        ]
        return _row(
            component, organizer, owner_email, hosts, platform_uuid=platform_uuid, undelivered=unreached
        )

    common = row_of(master, master.uid)
    if master.rrule is None:
        return [common]
    instances = _instances(master, overrides, window)
    rows = [
        replace(
            common,
            platform_uuid=f"{master.uid}_{instance.recurrence_key}",
            start_time=instance.start,
            end_time=instance.end,
            recurring_event_id=master.uid,
            original_start_time=instance.start,
        )
        for instance in instances
    ]
    for component in overrides:
        if not component.is_cancelled:
            row = row_of(component, f"{component.uid}_{component.recurrence_key}")
            rows.append(
                replace(row, recurring_event_id=component.uid, original_start_time=component.recurrence_id)
            )
    return rows


def recurrence_key_of(master: EventComponent, at: datetime) -> str:
    """What tells the instance of this original start from the others."""
    return f"{master.local(at):%Y%m%d}" if master.is_all_day else f"{at:%Y%m%dT%H%M%SZ}"


def keeps_instances(before: EventComponent, after: EventComponent) -> bool:
    """Whether a series that has the same times has only more instances than before, or ends earlier or later.

    Looks at the first thousand.
    """
    if before.rrule == after.rrule:
        return True
    if before.rrule is None or after.rrule is None:
        return False
    start = before.local(before.start)
    try:
        rule = Rule(after.rrule).walls(start, first=start, last=_LAST_DAY)
        new: datetime | None = start
        for old in itertools.islice(
            Rule(before.rrule).walls(start, first=start, last=_LAST_DAY), MOST_OCCURRENCES
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


def has_instance(master: EventComponent, recurrence_key: str) -> bool:
    """Whether the series (still) has an instance with this original start."""
    written = parse_time(recurrence_key)
    if written is None or written.wall.year > LAST_YEAR or master.rrule is None:
        return False
    at = written.wall.replace(tzinfo=UTC) if written.is_utc else instant(written.wall, master.timezone)
    around = Window(at - timedelta(days=1), at + timedelta(days=1))
    found = expand_series(_first_moment(master), _length(master), Rule(master.rrule), around)
    return any(occurrence.recurrence_key == recurrence_key for occurrence in found)


def _instances(
    master: EventComponent, overrides: Sequence[EventComponent], window: Window
) -> list[Occurrence]:
    """The instances that follow the series itself; the first after the window if none is in it."""
    start, length, rule = _first_moment(master), _length(master), Rule(master.rrule or "")
    excluded = {component.recurrence_key for component in overrides}
    found = expand_series(start, length, rule, window, excluded=excluded)
    if found:
        return found
    after = find_next_occurrence(start, length, rule, window.end, last=_LAST_DAY, excluded=excluded)
    return [] if after is None else [after]


def _first_moment(master: EventComponent) -> Moment:
    # In the hour that comes twice, a clock on the wall means the first one.
    local = master.local(master.start).replace(fold=0)
    return Moment(local, Zone(ZoneInfo(master.timezone), master.timezone), is_date=master.is_all_day)


def _length(master: EventComponent) -> timedelta:
    return max(master.local(master.end) - master.local(master.start), timedelta(0))


def _row(
    component: EventComponent,
    organizer: Person,
    owner_email: str | None,
    hosts: MeetingHosts,
    *,
    platform_uuid: str,
    undelivered: Sequence[Undelivered],
) -> RemoteEvent:
    organizer_keys = {fold_address(email) for email in (organizer.email, owner_email) if email}
    attendees = tuple(
        RemoteAttendee(
            email=person.email,
            name=person.name,
            response_status=(
                "accepted" if fold_address(person.email) in organizer_keys else person.response_status
            ),
            is_organizer=fold_address(person.email) in organizer_keys,
            is_optional=person.is_optional,
        )
        for person in component.attendees
    )
    if component.meeting_url is not None:
        link = find_meeting_link(conference=[component.meeting_url], hosts=hosts)
    else:
        link = find_meeting_link(
            location=component.location, description=component.description, title=component.name, hosts=hosts
        )
    raw = {
        "uid": component.uid,
        "sequence": component.sequence,
        "recurrence": [f"RRULE:{component.rrule}"] if component.rrule is not None else [],
        "is_changed_instance": bool(component.recurrence_key),
        "undelivered": [
            {"email": mail.email, "method": mail.method, "error": mail.error} for mail in undelivered
        ],
    }
    return RemoteEvent(
        platform_uuid=platform_uuid,
        raw=dump_raw(raw),
        start_time=component.start,
        end_time=component.end,
        is_all_day=component.is_all_day,
        timezone=component.timezone,
        name=component.name,
        description=component.description,
        location=component.location,
        ical_uid=component.uid,
        organizer=RemoteOrganizer(email=organizer.email, name=organizer.name),
        attendees=attendees,
        response_status="accepted",
        meeting_url=link.url if link is not None else component.meeting_url,
        meeting_platform=link.platform if link else None,
    )
