"""Create, update and delete hosted events, each with its rows, webhooks and mails in one transaction.

A changed instance has a component of its own beside the series. A change of the series also applies to those components
where they have the same as the series. New times of the series drop all changes and cancellations of single instances;
a new rule drops those of instances that the series no longer has.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from app.api.not_found import CalendarEventNotFound, CalendarNotFound
from app.core.clock import utcnow
from app.core.db import AnySession, Session
from app.hosted import repository
from app.hosted.calendar import LocalCalendar
from app.hosted.components import Attendee, EventComponent, HostedEventRef, instant
from app.hosted.errors import CalendarIsReadOnly, EventIsDeleted, InstanceHasNoRule
from app.hosted.instances import (
    changed_instances,
    find_dropped,
    find_instance,
    find_invited_back,
    find_reference,
    mailed_by_key,
    propagate_to_instances,
    unchanged_instance,
    with_mailed_sequences,
)
from app.hosted.mails import (
    PlannedMail,
    has_new_times,
    plan_dropped,
    plan_mails,
    plan_series,
    revise,
    without,
    without_recipients_of_series,
)
from app.hosted.patch import apply_patch, new_component
from app.hosted.rows import find_first_id, find_moved_id, save
from app.hosted.schemas import CalendarEventCreate, CalendarEventUpdate
from app.hosted.sending import queue_planned
from app.invitations.service import find_highest_sequence, find_sent_instances
from app.settings import Settings

Scope = Literal["instance", "series"]


async def create_event(
    session: Session, settings: Settings, project_id: str, body: CalendarEventCreate
) -> str:
    """Create an event or series, and return the id of the event or of the series' first instance.

    Raises CalendarNotFound; InvalidFields, also for a provider's calendar
    (CalendarIsReadOnly) and where mails are needed that cannot be sent (NoSender).
    """
    calendar = await repository.lock_calendar(session, body.calendar_id, project_id)
    if calendar is None:
        platform = await repository.find_platform(session, project_id, body.calendar_id)
        raise CalendarNotFound if platform is None else CalendarIsReadOnly(platform, field="calendar_id")
    component = new_component(body, default_timezone=calendar.timezone)
    await save(session, settings, calendar, {"": component}, changed=[component])
    event_id = await find_first_id(session, calendar, component.uid)
    if body.send_invitations:
        mails = plan_mails(None, component, organizer_emails=calendar.own_addresses, now=utcnow())
        await queue_planned(session, settings, calendar, mails)
    return event_id


async def update_event(
    session: Session,
    settings: Settings,
    project_id: str,
    event_id: str,
    body: CalendarEventUpdate,
    *,
    scope: Scope,
) -> str:
    """Change an event, an instance or a series, and return the id of an event that was changed.

    For a series, it is the named instance at its new time, if the series still has it. Raises CalendarEventNotFound;
    InvalidFields, also for a provider's event (CalendarIsReadOnly), a deleted one (EventIsDeleted), and where mails
    are needed that cannot be sent (NoSender).
    """
    calendar, ref, components = await _lock(session, project_id, event_id)
    master = components[""]
    if ref.is_deleted or master.is_cancelled:
        raise EventIsDeleted
    is_instance = master.rrule is not None and scope == "instance"
    if is_instance and body.recurrence is not None:
        raise InstanceHasNoRule
    before = find_instance(components, ref) if is_instance else master
    reference = find_reference(components, ref, is_instance=is_instance)
    after = apply_patch(before, body, reference)
    if after == before:
        return event_id
    above = await _find_highest_sequence(session, calendar, components)
    if is_instance:
        # Guests whose calendars have the series without this instance, in EXDATE.
        invited_back = find_invited_back(before, after, master)
        mailed = await find_sent_instances(session, calendar.calendar_id, before.uid) if invited_back else {}
        change = _change_instance(
            components, before, after, calendar, above=above, invited_back=invited_back, mailed=mailed
        )
    else:
        mailed = await find_sent_instances(session, calendar.calendar_id, before.uid)
        change = _change_series(components, after, calendar, above=above, mailed=mailed)
    kept = {
        key: component
        for key, component in {**components, **change.changed}.items()
        if key not in change.dropped
    }
    await repository.delete_components(session, before.uid, change.dropped)
    await save(session, settings, calendar, kept, changed=change.changed.values())
    if body.send_invitations:
        await queue_planned(session, settings, calendar, change.mails)
    if is_instance or not (has_new_times(before, after) or before.rrule != after.rrule):
        return event_id
    local = after.local(after.start) + (reference.local(reference.start) - before.local(before.start))
    return await find_moved_id(session, calendar, before.uid, event_id, instant(local, after.timezone))


async def delete_event(
    session: Session,
    settings: Settings,
    project_id: str,
    event_id: str,
    *,
    scope: Scope,
    send_invitations: bool,
) -> None:
    """Cancel an event, an instance or a series; do nothing if it is cancelled already.

    Raises CalendarEventNotFound; InvalidFields for a provider's event
    (CalendarIsReadOnly) and where mails are needed that cannot be sent (NoSender).
    """
    calendar, ref, components = await _lock(session, project_id, event_id)
    master = components[""]
    if master.is_cancelled or (ref.is_deleted and scope == "instance"):
        return
    is_instance = master.rrule is not None and scope == "instance"
    before = find_instance(components, ref) if is_instance else master
    above = await _find_highest_sequence(session, calendar, components)
    after = revise(before, replace(before, is_cancelled=True), above=above)
    own, now = calendar.own_addresses, utcnow()
    mails = plan_mails(before, after, organizer_emails=own, now=now)
    if not is_instance:
        mails += plan_dropped(
            changed_instances(components).values(),
            before.attendees,
            above=above,
            organizer_emails=own,
            now=now,
        )
    kept = {**components, after.recurrence_key: after}
    await save(session, settings, calendar, kept, changed=[after])
    if send_invitations:
        await queue_planned(session, settings, calendar, mails)


@dataclass(frozen=True, slots=True)
class _Change:
    """Plan of a change: components by recurrence key, mails, and the keys of instances to drop."""

    changed: dict[str, EventComponent]
    mails: list[PlannedMail]
    dropped: list[str] = field(default_factory=list)


def _change_instance(
    components: Mapping[str, EventComponent],
    before: EventComponent,
    after: EventComponent,
    calendar: LocalCalendar,
    *,
    above: int,
    invited_back: Sequence[Attendee],
    mailed: Mapping[str, AbstractSet[datetime]],
) -> _Change:
    """Return a change of one instance. Guests who are `invited_back` to it get the series again."""
    if invited_back:
        above += 1
    after = revise(before, after, above=above)
    own, now, key = calendar.own_addresses, utcnow(), after.recurrence_key
    mails = plan_mails(before, after, organizer_emails=own, now=now)
    if not invited_back:
        return _Change({key: after}, mails)
    series = replace(components[""], sequence=above)
    instances = changed_instances({**components, key: after})
    series_mails = plan_series(
        replace(series, attendees=without(series.attendees, invited_back)),
        series,
        [(component, component) for component in instances.values()],
        mailed=mailed_by_key(series, mailed),
        unchanged=lambda at: unchanged_instance(series, at),
        organizer_emails=own,
        now=now,
    )
    return _Change(
        {"": series, **with_mailed_sequences(series_mails, instances), key: after},
        [*series_mails, *without_recipients_of_series(mails, series_mails)],
    )


def _change_series(
    components: Mapping[str, EventComponent],
    after: EventComponent,
    calendar: LocalCalendar,
    *,
    above: int,
    mailed: Mapping[str, AbstractSet[datetime]],
) -> _Change:
    """Return a change of a series or single event, with what it means for changed instances."""
    before = components[""]
    after = revise(before, after, above=above)
    own, now = calendar.own_addresses, utcnow()
    dropped = find_dropped(components, before, after)
    instances = {
        key: component for key, component in changed_instances(components).items() if key not in dropped
    }
    propagated = propagate_to_instances(instances, before, after)
    mails = plan_series(
        before,
        after,
        [(component, propagated.get(key, component)) for key, component in instances.items()],
        mailed=mailed_by_key(after, mailed),
        unchanged=lambda at: unchanged_instance(after, at),
        organizer_emails=own,
        now=now,
    )
    changed = {"": after, **propagated, **with_mailed_sequences(mails, {**instances, **propagated})}
    mails += plan_dropped(
        [components[key] for key in dropped],
        (*before.attendees, *after.attendees),
        above=after.sequence,
        organizer_emails=own,
        now=now,
    )
    return _Change(changed, mails, dropped)


async def _lock(
    session: Session, project_id: str, event_id: str
) -> tuple[LocalCalendar, HostedEventRef, dict[str, EventComponent]]:
    """Lock an event's calendar and load the event. Raises CalendarEventNotFound, CalendarIsReadOnly."""
    found = await repository.locate(session, project_id, event_id)
    if found is None:
        raise CalendarEventNotFound
    if found.platform != "local":
        raise CalendarIsReadOnly(found.platform, field="non_field_errors")
    calendar = await repository.lock_calendar(session, found.calendar_id, project_id)
    # The row may have changed before the lock was taken.
    ref = await repository.locate(session, project_id, event_id)
    if calendar is None or ref is None:
        raise CalendarEventNotFound
    components = await repository.load_components(session, calendar.calendar_id, ref.uid)
    if "" not in components:
        raise CalendarEventNotFound
    return calendar, ref, components


async def _find_highest_sequence(
    session: AnySession, calendar: LocalCalendar, components: Mapping[str, EventComponent]
) -> int:
    """Return the highest SEQUENCE that anything of the event has or was sent with."""
    sent = await find_highest_sequence(session, calendar.calendar_id, components[""].uid)
    return max(sent, *(component.sequence for component in components.values()))
