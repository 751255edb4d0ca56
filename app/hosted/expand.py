"""Expand the components of a hosted event to the rows that applications see.

docs/adr/0004-expansion-of-hosted-series.md says which rows there are, and why they are stored.
Feeds and hosted series use app/ical/series.py, so recurrence keys, clock changes and identities agree.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from app.core.addresses import fold_address
from app.events.data import RemoteAttendee, RemoteEvent, RemoteOrganizer, Window
from app.events.raw import dump_raw
from app.hosted.components import EventComponent, instant
from app.hosted.rules import LAST_DAY, LAST_YEAR
from app.ical.moments import Moment
from app.ical.recurrence import Rule
from app.ical.series import Occurrence, expand_series, find_next_occurrence
from app.ical.timezones import Zone
from app.ical.values import parse_time
from app.invitations.service import Undelivered
from app.itip.event import Person
from app.meeting_links.extract import MeetingHosts, find_meeting_link


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
    """Return the rows of an event: one, or one for each instance of a series in the window.

    If the window has no instance of the series itself, its next instance is a row. Changed instances (`overrides`) are
    rows wherever they were moved to. `undelivered`: the mails that failed.
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
    """Return the key of the instance with this original start."""
    return f"{master.local(at):%Y%m%d}" if master.is_all_day else f"{at:%Y%m%dT%H%M%SZ}"


def has_instance(master: EventComponent, recurrence_key: str) -> bool:
    """Return whether the series (still) has an instance with this key."""
    written = parse_time(recurrence_key)
    if written is None or written.wall.year > LAST_YEAR or master.rrule is None:
        return False
    at = written.wall.replace(tzinfo=UTC) if written.is_utc else instant(written.wall, master.timezone)
    around = Window(at - timedelta(days=1), at + timedelta(days=1))
    found = expand_series(
        _first_moment(master), master.length, Rule(master.rrule), around, is_exact=master.is_exact
    )
    return any(occurrence.recurrence_key == recurrence_key for occurrence in found)


def _instances(
    master: EventComponent, overrides: Sequence[EventComponent], window: Window
) -> list[Occurrence]:
    """Return the instances without a component of their own; the first after the window if none is in it."""
    start, length, rule = _first_moment(master), master.length, Rule(master.rrule or "")
    excluded = {component.recurrence_key for component in overrides}
    found = expand_series(start, length, rule, window, excluded=excluded, is_exact=master.is_exact)
    if found:
        return found
    after = find_next_occurrence(
        start, length, rule, window.end, last=LAST_DAY, excluded=excluded, is_exact=master.is_exact
    )
    return [] if after is None else [after]


def _first_moment(master: EventComponent) -> Moment:
    # A wall clock time that comes twice is the first of the two, as in app/ical/moments.py.
    local = master.local(master.start).replace(fold=0)
    return Moment(local, Zone(ZoneInfo(master.timezone), master.timezone), is_date=master.is_all_day)


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
