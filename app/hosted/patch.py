"""Apply requests to components: a new event, a patch, new times. No database."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from app.core.addresses import fold_address
from app.core.errors import InvalidFields
from app.hosted.components import Attendee, EventComponent, instant, midnight, wall
from app.hosted.rules import LAST_YEAR, fit_rule, move_until
from app.hosted.schemas import AttendeeInput, CalendarEventCreate, CalendarEventUpdate

# Fields that have the same name in requests and in components, and need no conversion.
PLAIN_FIELDS = ("name", "description", "location", "meeting_url")
_LONGEST = timedelta(days=366)


def new_component(body: CalendarEventCreate, *, default_timezone: str) -> EventComponent:
    """Return the event or series of a request, with a new UID. Raises InvalidFields."""
    timezone = body.timezone or default_timezone
    start, end = _read_times(body.start_time, body.end_time, timezone, is_all_day=body.is_all_day)
    component = EventComponent(
        uid=str(uuid4()),
        name=body.name,
        description=body.description,
        location=body.location,
        meeting_url=body.meeting_url,
        start=start,
        end=end,
        is_all_day=body.is_all_day,
        timezone=timezone,
        attendees=_invite(body.attendees, ()),
    )
    return _with_rule(component, body.recurrence)


def apply_patch(
    before: EventComponent, body: CalendarEventUpdate, reference: EventComponent
) -> EventComponent:
    """Return `before` with the fields of the request. Raises InvalidFields.

    `reference` is the event or instance that the request names: the times in the request are its new times.
    """
    given = body.model_fields_set
    values: dict[str, Any] = {}
    for name in PLAIN_FIELDS:
        if name in given:
            values[name] = getattr(body, name)
    for name in ("name", "start_time", "end_time", "timezone"):
        if name in given and getattr(body, name) is None:
            raise InvalidFields.one(name, "This field may not be null.")
    if "attendees" in given:
        values["attendees"] = _invite(body.attendees, before.attendees)
    component = replace(before, **values)
    if "recurrence" in given and not body.recurrence and before.rrule is not None:
        # The series becomes one event: the instance that the request names.
        component = replace(component, rrule=None, start=reference.start, end=reference.end)
    if given & {"start_time", "end_time", "timezone", "is_all_day"}:
        component = reschedule(component, body, reference)
    if "recurrence" in given:
        component = _with_rule(replace(component, rrule=None), body.recurrence)
    elif component.rrule is not None:
        component = _with_rule(component, [component.rrule])
    return component


def reschedule(
    component: EventComponent, body: CalendarEventUpdate, reference: EventComponent
) -> EventComponent:
    """Return the component with new times. Raises InvalidFields.

    All instances of a series move as much as the `reference` instance does, in local time.
    """
    timezone = body.timezone or component.timezone
    is_all_day = body.is_all_day if "is_all_day" in body.model_fields_set else component.is_all_day
    if is_all_day != component.is_all_day and (body.start_time is None or body.end_time is None):
        raise InvalidFields.one("is_all_day", "Send start_time and end_time too.")
    moved = replace(component, timezone=timezone, is_all_day=is_all_day)
    current = reference if component.rrule is not None else component
    if body.start_time is None and body.end_time is None:
        if not is_all_day:
            return moved
        # All-day events keep their days in the new zone.
        start = instant(component.local(component.start), timezone)
        return replace(moved, start=start, end=instant(component.local(component.end), timezone))
    start_given, end_given = body.start_time, body.end_time
    if start_given is None:
        start_given = instant(current.local(current.start), timezone) if is_all_day else current.start
    if end_given is None:
        local = moved.local(_read_time(start_given, timezone, is_all_day, "start_time"))
        end_given = instant(local + current.length, timezone)
    start, end = _read_times(start_given, end_given, timezone, is_all_day=is_all_day)
    if component.rrule is None:
        return replace(moved, start=start, end=end)
    length = replace(moved, start=start, end=end).length
    shift = moved.local(start) - current.local(current.start)
    local = component.local(component.start) + shift
    return replace(
        moved,
        start=instant(local, timezone),
        end=instant(local + length, timezone),
        rrule=move_until(component, shift),
    )


def _invite(given: Sequence[AttendeeInput], known: Iterable[Attendee]) -> tuple[Attendee, ...]:
    """Return the attendees of a request; those that are `known` keep their reply and what is not given."""
    by_address = {fold_address(one.email): one for one in known}
    people = []
    for one in given:
        old = by_address.get(fold_address(one.email))
        if old is None:
            person = Attendee(email=one.email, name=one.name, is_optional=one.is_optional, locale=one.locale)
        else:
            changes = {name: getattr(one, name) for name in one.model_fields_set - {"email"}}
            person = replace(old, **changes)
        people.append(person)
    return tuple(people)


def _with_rule(component: EventComponent, recurrence: Sequence[str] | None) -> EventComponent:
    """Return the component with the rule, fitted to its start. Raises InvalidFields."""
    if not recurrence:
        return component
    try:
        return replace(component, rrule=fit_rule(recurrence[0], component))
    except ValueError as err:
        raise InvalidFields.one("recurrence", str(err)) from None


def _read_times(
    start: datetime, end: datetime, timezone: str, *, is_all_day: bool
) -> tuple[datetime, datetime]:
    """Return checked times; for an all-day event, midnights of its zone. Raises InvalidFields."""
    for name, at in (("start_time", start), ("end_time", end)):
        if not 1970 < at.year <= LAST_YEAR:
            raise InvalidFields.one(name, f"Must be between the years 1971 and {LAST_YEAR}.")
    start = _read_time(start, timezone, is_all_day, "start_time")
    end = _read_time(end, timezone, is_all_day, "end_time")
    if end <= start:
        hint = " It is exclusive: of a day alone, send the next day." if is_all_day else ""
        raise InvalidFields.one("end_time", f"Must be after start_time.{hint}")
    if end - start > _LONGEST:
        raise InvalidFields.one("end_time", "An event may last a year at most.")
    return start, end


def _read_time(at: datetime, timezone: str, is_all_day: bool, name: str) -> datetime:
    """Return a time in whole seconds; for an all-day event, the midnight of its zone.

    The day is given as a date, which arrives as a midnight in UTC, or as a midnight of the zone. Raises InvalidFields.
    """
    if not is_all_day:
        return at.replace(microsecond=0)  # iCalendar has no smaller unit
    day = midnight(wall(at, timezone))
    # Where the clocks skip midnight, the day begins at a later time.
    if at == instant(day, timezone) or wall(at, timezone) == day:
        return instant(day, timezone)
    if at.replace(tzinfo=None) == midnight(at.replace(tzinfo=None)):
        return instant(at.replace(tzinfo=None), timezone)
    raise InvalidFields.one(name, "Of an all-day event, send a date such as 2026-11-24.")
