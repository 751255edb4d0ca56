"""Instances of a series: find them, and apply the series' changes to them. No database."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime, timedelta

from app.core.addresses import fold_address
from app.hosted.components import (
    Attendee,
    EventComponent,
    HostedEventRef,
    instance_from_series,
    instant,
    midnight,
    wall,
)
from app.hosted.expand import has_instance, recurrence_key_of
from app.hosted.mails import PlannedMail, ask_again, has_moved, has_new_times, revise
from app.hosted.patch import PLAIN_FIELDS

_DAY = timedelta(days=1)


def changed_instances(components: Mapping[str, EventComponent]) -> dict[str, EventComponent]:
    """Return the components without the event or series itself."""
    return {key: component for key, component in components.items() if key}


def find_instance(components: Mapping[str, EventComponent], ref: HostedEventRef) -> EventComponent:
    """Return one instance: its own component, or what the series has."""
    known = components.get(ref.recurrence_key)
    if known is not None:
        return known
    assert ref.original_start_time is not None
    return instance_from_series(components[""], ref.original_start_time, ref.recurrence_key)


def find_reference(
    components: Mapping[str, EventComponent], ref: HostedEventRef, *, is_instance: bool
) -> EventComponent:
    """Return what the times of a request are about: the instance that it names, or a single event.

    It is the instance also if the whole series is to change.
    """
    series = components[""]
    if series.rrule is None or is_instance or ref.original_start_time is None:
        return series
    return instance_from_series(series, ref.original_start_time, ref.recurrence_key)


def find_component(components: Mapping[str, EventComponent], recurrence_key: str) -> EventComponent | None:
    """Return what a reply is about: a component, or an instance of the series that was never changed."""
    series = components.get("")
    if series is None or recurrence_key in components:
        return components.get(recurrence_key)
    if not has_instance(series, recurrence_key):
        return None
    form = "%Y%m%dT%H%M%SZ" if "T" in recurrence_key else "%Y%m%d"
    local = datetime.strptime(recurrence_key, form)  # noqa: DTZ007 - its zone follows
    at = instant(local, series.timezone if series.is_all_day else "UTC")
    return instance_from_series(series, at, recurrence_key)


def mailed_by_key(
    series: EventComponent, mailed: Mapping[str, AbstractSet[datetime]]
) -> dict[str, dict[str, datetime]]:
    """Return the original starts that a guest had mails about, by folded address and recurrence key.

    An all-day series may have had another zone when a mail was written. Its starts are midnights of the present zone.
    """
    present: dict[datetime, tuple[str, datetime]] = {}
    for written in set().union(*mailed.values()):
        at = _present_start(series, written)
        present[written] = recurrence_key_of(series, at), at
    return {address: dict(present[written] for written in starts) for address, starts in mailed.items()}


def _present_start(series: EventComponent, written: datetime) -> datetime:
    if not series.is_all_day:
        return written
    # The day whose midnight this was, in the zone that the series had when the mail was written.
    return instant(midnight(wall(written, series.timezone) + _DAY / 2), series.timezone)


def unchanged_instance(series: EventComponent, original_start: datetime) -> EventComponent | None:
    """Return the instance with that original start as the series has it, if it has one."""
    key = recurrence_key_of(series, original_start)
    return instance_from_series(series, original_start, key) if has_instance(series, key) else None


def find_dropped(
    components: Mapping[str, EventComponent], before: EventComponent, after: EventComponent
) -> list[str]:
    """Return the keys of changed instances that the changed series no longer has.

    New times of a series drop all of them.
    """
    keys = [key for key in components if key]
    if has_new_times(before, after):
        return keys
    return [] if before.rrule == after.rrule else [key for key in keys if not has_instance(after, key)]


def find_invited_back(
    before: EventComponent, after: EventComponent, series: EventComponent
) -> tuple[Attendee, ...]:
    """Return guests of the series who were not invited to this instance of it, and are now."""
    return tuple(
        one
        for one in after.attendees
        if before.find(one.email) is None and series.find(one.email) is not None
    )


def with_mailed_sequences(
    mails: Sequence[PlannedMail], instances: Mapping[str, EventComponent]
) -> dict[str, EventComponent]:
    """Return the instances that these mails contain, with the SEQUENCE that they have there.

    It is above that of the series.
    """
    mailed = [component for mail in mails for component in (mail.component, *mail.overrides)]
    return {
        component.recurrence_key: replace(instances[component.recurrence_key], sequence=component.sequence)
        for component in mailed
        if component.recurrence_key in instances
    }


def propagate_to_instances(
    instances: Mapping[str, EventComponent], before: EventComponent, after: EventComponent
) -> dict[str, EventComponent]:
    """Return the changed instances that get the series' change, by recurrence key.

    A field or attendee changes where the instance had the same as the series before.
    """
    changed: dict[str, EventComponent] = {}
    old_people = {fold_address(one.email): one for one in before.attendees}
    new_people = {fold_address(one.email): one for one in after.attendees}
    is_asked_again = has_moved(before, after)
    for key, component in instances.items():
        if component.is_cancelled:
            continue
        values = {
            name: getattr(after, name)
            for name in PLAIN_FIELDS
            if getattr(before, name) != getattr(after, name)
            and getattr(component, name) == getattr(before, name)
        }
        people = {fold_address(one.email): one for one in component.attendees}
        kept = [
            _propagate_to_attendee(one, old_people.get(address), new_people.get(address))
            for address, one in people.items()
            if address in new_people or address not in old_people
        ]
        added = [
            one for address, one in new_people.items() if address not in people and address not in old_people
        ]
        if is_asked_again:
            kept = [
                one
                if one.has_own_reply or fold_address(one.email) not in new_people
                else ask_again(one, after.sequence)
                for one in kept
            ]
        propagated = replace(component, **values, attendees=(*kept, *added))
        if propagated != component:
            changed[key] = revise(component, propagated, above=after.sequence)
    return changed


def _propagate_to_attendee(one: Attendee, before: Attendee | None, after: Attendee | None) -> Attendee:
    """Return an instance's guest with the series' change of the same person."""
    if before is None or after is None:
        return one
    values = {
        name: getattr(after, name)
        for name in ("name", "is_optional", "locale")
        if getattr(one, name) == getattr(before, name)
    }
    return replace(one, **values)
