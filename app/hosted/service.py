"""Events of local calendars: written, expanded, told by webhook and by mail, all in one transaction (contract 4).

A change of one instance makes a component of its own beside the series. A change of the series goes to those components
too, where they still had what the series had. A change of the series' times makes all instances new: changes and
cancellations of single instances are dropped. Another rule keeps those whose original start it still has.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

import structlog

from app.api.not_found import CalendarEventNotFound, CalendarNotFound
from app.core.addresses import fold_address
from app.core.clock import isoformat, utcnow
from app.core.db import AnySession, Session, Sessions, reading, transaction
from app.core.errors import InvalidFields
from app.events.data import ResponseStatus, Unannounced, Window
from app.events.writer import announce_changes, apply_changes
from app.hosted import repository
from app.hosted.components import Attendee, EventComponent, instance_of, instant, midnight, wall
from app.hosted.expand import (
    LAST_YEAR,
    expand,
    fit_rule,
    has_instance,
    last_end,
    move_until,
    recurrence_key_of,
)
from app.hosted.mails import (
    PlannedMail,
    ask_again,
    has_moved,
    has_new_times,
    plan_dropped,
    plan_mails,
    plan_series,
    revise,
    told_beside,
    without,
)
from app.hosted.repository import HostedEventRef, LocalCalendar
from app.hosted.schemas import AttendeeInput, CalendarEventCreate, CalendarEventUpdate
from app.invitations.links import RsvpTokens, Subject
from app.invitations.repository import find_undelivered
from app.invitations.service import (
    RsvpLinks,
    Sender,
    find_highest_sequence,
    find_told_instances,
    find_told_sequence,
    queue_mails,
)
from app.itip.event import Person
from app.meeting_urls.hosts import meeting_hosts
from app.settings import Settings
from app.webhooks.service import CalendarFacts, announce

log = structlog.get_logger()

Scope = Literal["instance", "series"]

_PROVIDERS = {"google": "Google", "microsoft": "Microsoft", "ics": "its iCal feed"}

_DAY = timedelta(days=1)
_LONGEST = timedelta(days=366)
# Series are expanded this much further than promised, and again before that is used up.
_MARGIN = timedelta(days=2)
_EXPAND_EVERY = timedelta(days=1)
_EXPAND_AGAIN = timedelta(minutes=1)  # after a fault
_EXPANDED_AT_ONCE = 100
# What names an event's fields in requests, and how components call them.
_PLAIN_FIELDS = ("name", "description", "location", "meeting_url")


@dataclass(frozen=True, slots=True)
class Hosting:
    """What writing hosted events needs of the process."""

    settings: Settings

    @property
    def tokens(self) -> RsvpTokens:
        return RsvpTokens(self.settings.required_fernet_keys())


async def require_local(session: AnySession, project_id: str, calendar_id: str) -> None:
    """Check that the calendar is hosted here. Raises CalendarNotFound; InvalidFields for a provider's calendar."""
    platform = await repository.find_platform(session, project_id, calendar_id)
    if platform is None:
        raise CalendarNotFound
    if platform != "local":
        raise InvalidFields.one("calendar_id", _read_only(platform))


async def require_local_event(session: AnySession, project_id: str, event_id: str) -> None:
    """Check that the event's calendar is hosted here. Raises CalendarEventNotFound; InvalidFields for a provider's event."""
    ref = await repository.locate(session, project_id, event_id)
    if ref is None:
        raise CalendarEventNotFound
    if ref.platform != "local":
        raise InvalidFields.one("non_field_errors", _read_only(ref.platform))


def _read_only(platform: str) -> str:
    return (
        f"This is a {platform} calendar, and access to it is read-only: change its events at "
        f"{_PROVIDERS.get(platform, platform)}."
    )


async def create_event(session: Session, hosting: Hosting, project_id: str, body: CalendarEventCreate) -> str:
    """The id of the event, or of the series' first instance.

    Raises CalendarNotFound, InvalidFields (also where mails would be needed and there is no way out).
    """
    calendar = await repository.lock_calendar(session, body.calendar_id, project_id)
    if calendar is None:
        raise CalendarNotFound
    timezone = body.timezone or calendar.timezone
    start, end = _times(body.start_time, body.end_time, timezone, is_all_day=body.is_all_day)
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
        attendees=_attendees(body.attendees, ()),
    )
    component = _with_rule(component, body.recurrence)
    mails = plan_mails(None, component, organizer_emails=_own_addresses(calendar), now=utcnow())
    await _save(session, hosting, calendar, {"": component}, changed=[component])
    event_id, *_ = (await _required_rows(session, calendar, component.uid))[0]
    if body.send_invitations:
        await _queue(session, hosting, calendar, mails)
    return event_id


async def update_event(
    session: Session,
    hosting: Hosting,
    project_id: str,
    event_id: str,
    body: CalendarEventUpdate,
    *,
    scope: Scope,
) -> str:
    """The id of the event, or of an instance of the changed series.

    Raises CalendarEventNotFound, InvalidFields.
    """
    calendar, ref, components = await _lock(session, project_id, event_id)
    if ref.is_deleted or components[""].is_cancelled:
        raise InvalidFields.one("non_field_errors", "This event was deleted.")
    of_series = components[""].rrule is not None and scope == "instance"
    if of_series and body.recurrence is not None:
        raise InvalidFields.one(
            "recurrence", "An instance has no rule: use ?scope=series to change the series."
        )
    before = _instance(components, ref) if of_series else components[""]
    origin = _origin(components, ref, scope)
    after = _patched(before, body, origin)
    if after == before:
        return event_id
    above = await _highest_sequence(session, calendar, components)
    # Guests whose calendar may have the series without this instance, in EXDATE: they get the series again.
    back = _invited_back(before, after, components[""]) if of_series else ()
    if back:
        above += 1
    after = revise(before, after, above=above)
    changed = {before.recurrence_key: after}
    dropped: list[str] = []
    own, now = _own_addresses(calendar), utcnow()
    if of_series:
        mails = plan_mails(before, after, organizer_emails=own, now=now)
        if back:
            series = replace(components[""], sequence=above)
            instances = {
                recurrence_key: component
                for recurrence_key, component in {**components, after.recurrence_key: after}.items()
                if recurrence_key
            }
            again = plan_series(
                replace(series, attendees=without(series.attendees, back)),
                series,
                [(component, component) for component in instances.values()],
                told=await find_told_instances(session, calendar.calendar_id, before.uid),
                plain=lambda at: _plain_instance(series, at),
                organizer_emails=own,
                now=now,
            )
            changed = {"": series, **_as_told(again, instances), after.recurrence_key: after}
            mails = [*again, *told_beside(mails, again)]
    else:
        dropped = _dropped(components, before, after)
        instances = {
            recurrence_key: component
            for recurrence_key, component in components.items()
            if recurrence_key and recurrence_key not in dropped
        }
        followed = _followed(instances, before, after)
        mails = plan_series(
            before,
            after,
            [
                (component, followed.get(recurrence_key, component))
                for recurrence_key, component in instances.items()
            ],
            told=await find_told_instances(session, calendar.calendar_id, before.uid),
            plain=lambda at: _plain_instance(after, at),
            organizer_emails=own,
            now=now,
        )
        changed |= followed
        changed |= _as_told(mails, {**instances, **followed})
        told = (*before.attendees, *after.attendees)
        mails += plan_dropped(
            (components[recurrence_key] for recurrence_key in dropped),
            told,
            above=after.sequence,
            organizer_emails=own,
            now=now,
        )
    kept = {
        recurrence_key: component
        for recurrence_key, component in {**components, **changed}.items()
        if recurrence_key not in dropped
    }
    await repository.delete_components(session, before.uid, dropped)
    await _save(session, hosting, calendar, kept, changed=changed.values())
    if body.send_invitations:
        await _queue(session, hosting, calendar, mails)
    if of_series or not (has_new_times(before, after) or before.rrule != after.rrule):
        return event_id
    local = after.local(after.start) + (origin.local(origin.start) - before.local(before.start))
    return await _moved_id(session, calendar, before.uid, event_id, instant(local, after.timezone))


async def delete_event(
    session: Session,
    hosting: Hosting,
    project_id: str,
    event_id: str,
    *,
    scope: Scope,
    send_invitations: bool,
) -> None:
    """Cancels the event, the instance or the series; once more does nothing. Raises CalendarEventNotFound, InvalidFields."""
    calendar, ref, components = await _lock(session, project_id, event_id)
    if components[""].is_cancelled or (ref.is_deleted and scope == "instance"):
        return
    of_series = components[""].rrule is not None and scope == "instance"
    before = _instance(components, ref) if of_series else components[""]
    above = await _highest_sequence(session, calendar, components)
    after = revise(before, replace(before, is_cancelled=True), above=above)
    own, now = _own_addresses(calendar), utcnow()
    mails = plan_mails(before, after, organizer_emails=own, now=now)
    if not of_series:
        instances = (component for recurrence_key, component in components.items() if recurrence_key)
        mails += plan_dropped(instances, before.attendees, above=above, organizer_emails=own, now=now)
    kept = {**components, after.recurrence_key: after}
    await _save(session, hosting, calendar, kept, changed=[after])
    if send_invitations:
        await _queue(session, hosting, calendar, mails)


@dataclass(frozen=True, slots=True)
class Answer:
    """An attendee's answer to an event, a series (`recurrence_key` '') or an instance."""

    uid: str
    recurrence_key: str
    email: str
    response_status: ResponseStatus
    sequence: int | None  # that was answered; None: the current one, for a click, which is never stale
    replied_at: datetime


Recorded = Literal["applied", "unchanged", "stale", "unknown_event", "cancelled", "not_invited", "over"]


async def record_answer(
    session: Session,
    hosting: Hosting,
    calendar: LocalCalendar,
    answer: Answer,
    *,
    tell_organizer: bool,
) -> Recorded:
    """Writes the answer, announces it, and with `tell_organizer` mails the organizer a REPLY.

    The caller holds the calendar's row lock.
    """
    components = await repository.load_components(session, calendar.calendar_id, answer.uid)
    component = find_component(components, answer.recurrence_key)
    if component is None:
        return "unknown_event"
    if (
        component.is_cancelled
        or components[""].is_cancelled
        or await has_no_instance(session, calendar, component)
    ):
        return "cancelled"
    person = component.find(answer.email)
    if person is None:
        return "not_invited"
    ends_at = last_end(component)
    if ends_at is not None and ends_at <= utcnow():
        return "over"
    if answer.sequence is not None:
        # A SEQUENCE that was never sent must not shut out the answers that follow.
        sequence = min(answer.sequence, component.sequence)
        if person.is_stale(sequence, answer.replied_at):
            return "stale"
    else:
        # What this guest knows of: others may have been told more, and a later answer by mail must still count.
        sequence = await find_told_sequence(
            session, calendar.calendar_id, component.uid, component.recurrence_id, fold_address(answer.email)
        )
        sequence = min(component.sequence, max(person.sequence or 0, sequence))
    answered = replace(
        person,
        response_status=answer.response_status,
        sequence=sequence,
        replied_at=answer.replied_at,
        has_own_answer=bool(answer.recurrence_key),
    )
    changed = {component.recurrence_key: component.with_attendee(answered)}
    if not answer.recurrence_key:
        for other in components.values():
            same = other.find(answer.email)
            if not other.recurrence_key or same is None or same.has_own_answer:
                continue
            # An answer to the series of before the instance was moved does not say yes to its new time.
            if answer.sequence is None or not same.is_stale(sequence, answer.replied_at):
                changed[other.recurrence_key] = other.with_attendee(
                    replace(same, response_status=answer.response_status, replied_at=answer.replied_at)
                )
    kept = {**components, **changed}
    is_news = person.response_status != answer.response_status
    await _save(session, hosting, calendar, kept, changed=changed.values())
    if not is_news:
        return "unchanged"
    event_id = await _id_of(session, calendar, component)
    await _announce_answer(session, calendar, component, person, answered, event_id=event_id)
    sender = sender_of(calendar, hosting.settings)
    if tell_organizer and sender is None:
        log.warning("rsvp_reply_not_mailed", calendar_id=calendar.calendar_id, reason="no way out for mails")
    elif tell_organizer and sender is not None:
        await queue_mails(
            session,
            project_id=calendar.project_id,
            calendar_id=calendar.calendar_id,
            event=changed[component.recurrence_key].for_mail(organizer_of(calendar)),
            method="REPLY",
            recipients=[Person(email=calendar.owner_email, name=calendar.owner_name)],
            sender=sender,
            locale=calendar.locale,
            replying=answered.guest,
        )
    return "applied"


async def keep_expanded(session: Session, hosting: Hosting, calendar_id: str, uid: str) -> None:
    """Writes an event's rows anew: a series reaches as far as the window does by now."""
    calendar = await repository.lock_calendar(session, calendar_id)
    if calendar is None:
        return
    components = await repository.load_components(session, calendar_id, uid)
    if "" in components:
        # First: what happens from here on sets it anew.
        await repository.set_expand_at(session, uid, _expand_at(components[""]))
        await _write_rows(session, hosting, calendar, components)


async def write_rows_soon(session: Session, calendar_id: str, uid: str | None = None) -> None:
    """Have a worker write the rows of this event anew, or of all of the calendar's events."""
    await repository.write_rows_soon(session, calendar_id, uid)


async def keep_all_expanded(sessions: Sessions, hosting: Hosting) -> None:
    """The events that are due for it. Each in a transaction of its own; a worker's upkeep calls it now and then."""
    while True:
        async with reading(sessions) as read_session:
            due = await repository.find_to_expand(read_session, _EXPANDED_AT_ONCE)
        for calendar_id, uid in due:
            try:
                async with transaction(sessions) as session:
                    await keep_expanded(session, hosting, calendar_id, uid)
            except Exception as err:  # noqa: BLE001 - one bad event must not hold up the others, now or in the next round
                log.warning("event_not_expanded", calendar_id=calendar_id, uid=uid, error=type(err).__name__)
                async with transaction(sessions) as session:
                    await repository.set_expand_at(session, uid, utcnow() + _EXPAND_AGAIN)
        if len(due) < _EXPANDED_AT_ONCE:
            return


def sender_of(calendar: LocalCalendar, settings: Settings) -> Sender | None:
    """Whom the calendar's mails come from; None where there is no way out.

    A calendar with a sending identity never falls back to another sender.
    """
    if calendar.identity is not None:
        if not settings.feature_messages_integration:
            return None
        return Sender(
            mailbox_id=calendar.identity["mailbox_id"],
            email=calendar.identity["email"],
            name=calendar.identity["name"] or calendar.owner_name,
            owner_email=calendar.owner_email,
        )
    if settings.smtp_sender is None:
        return None
    email, name = settings.smtp_sender
    return Sender(
        mailbox_id=None, email=email, name=calendar.owner_name or name, owner_email=calendar.owner_email
    )


def organizer_of(calendar: LocalCalendar) -> Person:
    """ORGANIZER is the sending identity (RFC 5546); without a mailbox the owner, whom answers are to reach."""
    if calendar.identity is not None:
        return Person(email=calendar.identity["email"], name=calendar.identity["name"] or calendar.owner_name)
    return Person(email=calendar.owner_email, name=calendar.owner_name)


def _own_addresses(calendar: LocalCalendar) -> list[str]:
    return [calendar.owner_email, organizer_of(calendar).email]


async def _lock(
    session: Session, project_id: str, event_id: str
) -> tuple[LocalCalendar, HostedEventRef, dict[str, EventComponent]]:
    """The event's calendar, locked, and what is stored of the event. Raises CalendarEventNotFound."""
    found = await repository.locate(session, project_id, event_id)
    if found is None:
        raise CalendarEventNotFound
    calendar = await repository.lock_calendar(session, found.calendar_id, project_id)
    # Once more, under the lock.
    ref = await repository.locate(session, project_id, event_id)
    if calendar is None or ref is None:
        raise CalendarEventNotFound
    components = await repository.load_components(session, calendar.calendar_id, ref.uid)
    if "" not in components:
        raise CalendarEventNotFound
    return calendar, ref, components


def _instance(components: Mapping[str, EventComponent], ref: HostedEventRef) -> EventComponent:
    """The component of one instance: its own, or what the series says of it."""
    known = components.get(ref.recurrence_key)
    if known is not None:
        return known
    assert ref.original_start_time is not None
    return instance_of(components[""], ref.original_start_time, ref.recurrence_key)


def find_component(components: Mapping[str, EventComponent], recurrence_key: str) -> EventComponent | None:
    """The component that an answer is about; an instance that was never changed gets one."""
    master = components.get("")
    if master is None or recurrence_key in components:
        return components.get(recurrence_key)
    if not has_instance(master, recurrence_key):
        return None
    form = "%Y%m%dT%H%M%SZ" if "T" in recurrence_key else "%Y%m%d"
    local = datetime.strptime(recurrence_key, form)  # noqa: DTZ007 - its zone follows
    at = instant(local, master.timezone if master.is_all_day else "UTC")
    return instance_of(master, at, recurrence_key)


async def has_no_instance(session: AnySession, calendar: LocalCalendar, component: EventComponent) -> bool:
    """Whether each instance of this series was deleted by itself; nobody cancelled the series then."""
    if component.rrule is None:
        return False
    return not await repository.load_live_rows(session, calendar.calendar_id, component.uid)


def _plain_instance(series: EventComponent, original_start: datetime) -> EventComponent | None:
    """The instance of that original start, if the series has one."""
    if series.is_all_day:
        # The day that was told, which began at the midnight of the series' zone of then.
        day = midnight(wall(original_start, series.timezone) + _DAY / 2)
        original_start = instant(day, series.timezone)
    recurrence_key = recurrence_key_of(series, original_start)
    return (
        instance_of(series, original_start, recurrence_key) if has_instance(series, recurrence_key) else None
    )


async def _highest_sequence(
    session: AnySession, calendar: LocalCalendar, components: Mapping[str, EventComponent]
) -> int:
    """That anybody was told of the event or of one of its instances."""
    uid = components[""].uid
    told = await find_highest_sequence(session, calendar.calendar_id, uid)
    return max(told, *(component.sequence for component in components.values()))


def _dropped(
    components: Mapping[str, EventComponent], before: EventComponent, after: EventComponent
) -> list[str]:
    """The keys of the components that a change of the series leaves no place for."""
    keys = [recurrence_key for recurrence_key in components if recurrence_key]
    if has_new_times(before, after):
        return keys
    return (
        []
        if before.rrule == after.rrule
        else [recurrence_key for recurrence_key in keys if not has_instance(after, recurrence_key)]
    )


def _origin(components: Mapping[str, EventComponent], ref: HostedEventRef, scope: Scope) -> EventComponent:
    """What the request's times are about: the instance that was named, also where the whole series is to move."""
    if components[""].rrule is None or scope == "instance" or ref.original_start_time is None:
        return components[""]
    return instance_of(components[""], ref.original_start_time, ref.recurrence_key)


def _patched(before: EventComponent, body: CalendarEventUpdate, origin: EventComponent) -> EventComponent:
    """`before` with the fields of the request. Raises InvalidFields."""
    given = body.model_fields_set
    values: dict[str, Any] = {}
    for name in _PLAIN_FIELDS:
        if name in given:
            values[name] = getattr(body, name)
    for name in ("name", "start_time", "end_time", "timezone"):
        if name in given and getattr(body, name) is None:
            raise InvalidFields.one(name, "This field may not be null.")
    if "attendees" in given:
        values["attendees"] = _attendees(body.attendees, before.attendees)
    component = replace(before, **values)
    if "recurrence" in given and not body.recurrence and before.rrule is not None:
        # One event from now on: the instance that was named.
        component = replace(component, rrule=None, start=origin.start, end=origin.end)
    if given & {"start_time", "end_time", "timezone", "is_all_day"}:
        component = _moved(component, body, origin)
    if "recurrence" in given:
        component = _with_rule(replace(component, rrule=None), body.recurrence)
    elif component.rrule is not None:
        component = _with_rule(component, [component.rrule])
    return component


def _moved(component: EventComponent, body: CalendarEventUpdate, origin: EventComponent) -> EventComponent:
    """With new times. Of a series, the times in the request are those of the named instance."""
    timezone = body.timezone or component.timezone
    is_all_day = body.is_all_day if "is_all_day" in body.model_fields_set else component.is_all_day
    if is_all_day != component.is_all_day and (body.start_time is None or body.end_time is None):
        raise InvalidFields.one("is_all_day", "Send start_time and end_time too.")
    moved = replace(component, timezone=timezone, is_all_day=is_all_day)
    current = origin if component.rrule is not None else component
    if body.start_time is None and body.end_time is None:
        if not is_all_day:
            return moved
        # Days stay days, wherever they are.
        start, end = (
            instant(component.local(component.start), timezone),
            instant(component.local(component.end), timezone),
        )
        return replace(moved, start=start, end=end)
    start_given, end_given = body.start_time, body.end_time
    if start_given is None:
        start_given = instant(current.local(current.start), timezone) if is_all_day else current.start
    if end_given is None:
        local = moved.local(_day_or_time(start_given, timezone, is_all_day, "start_time"))
        end_given = instant(local + current.length, timezone)
    start, end = _times(start_given, end_given, timezone, is_all_day=is_all_day)
    if component.rrule is None:
        return replace(moved, start=start, end=end)
    # From what the clock shows now to what it is to show, so that the named instance comes to where it was sent.
    length = replace(moved, start=start, end=end).length
    shift = moved.local(start) - current.local(current.start)
    local = component.local(component.start) + shift
    return replace(
        moved,
        start=instant(local, timezone),
        end=instant(local + length, timezone),
        rrule=move_until(component, shift),
    )


def _invited_back(
    before: EventComponent, after: EventComponent, series: EventComponent
) -> tuple[Attendee, ...]:
    """Guests of the series who were not invited to this instance of it, and are now."""
    return tuple(
        one
        for one in after.attendees
        if before.find(one.email) is None and series.find(one.email) is not None
    )


def _as_told(
    mails: Sequence[PlannedMail], instances: Mapping[str, EventComponent]
) -> dict[str, EventComponent]:
    """The instances that these mails tell again, with the SEQUENCE that they have there: newer than the series."""
    told = [component for mail in mails for component in (mail.component, *mail.overrides)]
    return {
        component.recurrence_key: replace(instances[component.recurrence_key], sequence=component.sequence)
        for component in told
        if component.recurrence_key in instances
    }


def _followed(
    instances: Mapping[str, EventComponent], before: EventComponent, after: EventComponent
) -> dict[str, EventComponent]:
    """The changed instances with the series' change, where they had what the series had."""
    followed: dict[str, EventComponent] = {}
    old_people = {fold_address(one.email): one for one in before.attendees}
    new_people = {fold_address(one.email): one for one in after.attendees}
    is_asked_again = has_moved(before, after)
    for recurrence_key, component in instances.items():
        if component.is_cancelled:
            continue
        values = {
            name: getattr(after, name)
            for name in _PLAIN_FIELDS
            if getattr(before, name) != getattr(after, name)
            and getattr(component, name) == getattr(before, name)
        }
        people = {fold_address(one.email): one for one in component.attendees}
        kept = [
            _followed_person(one, old_people.get(key), new_people.get(key))
            for key, one in people.items()
            if key in new_people or key not in old_people
        ]
        added = [one for key, one in new_people.items() if key not in people and key not in old_people]
        if is_asked_again:
            kept = [
                one
                if one.has_own_answer or fold_address(one.email) not in new_people
                else ask_again(one, after.sequence)
                for one in kept
            ]
        changed = replace(component, **values, attendees=(*kept, *added))
        if changed != component:
            followed[recurrence_key] = revise(component, changed, above=after.sequence)
    return followed


def _followed_person(one: Attendee, before: Attendee | None, after: Attendee | None) -> Attendee:
    """An instance's guest, with what the series now says of the same person."""
    if before is None or after is None:
        return one
    values = {
        name: getattr(after, name)
        for name in ("name", "is_optional", "locale")
        if getattr(one, name) == getattr(before, name)
    }
    return replace(one, **values)


def _attendees(given: Sequence[AttendeeInput], known: Iterable[Attendee]) -> tuple[Attendee, ...]:
    """The new list; whoever was invited before keeps the answer."""
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
    """With the rule, which fits its start. Raises InvalidFields."""
    if not recurrence:
        return component
    try:
        return replace(component, rrule=fit_rule(recurrence[0], component))
    except ValueError as err:
        raise InvalidFields.one("recurrence", str(err)) from None


def _times(start: datetime, end: datetime, timezone: str, *, is_all_day: bool) -> tuple[datetime, datetime]:
    """Checked; of an all-day event, midnights in its zone. Raises InvalidFields."""
    for name, at in (("start_time", start), ("end_time", end)):
        if not 1970 < at.year <= LAST_YEAR:
            raise InvalidFields.one(name, f"Must be between the years 1971 and {LAST_YEAR}.")
    start = _day_or_time(start, timezone, is_all_day, "start_time")
    end = _day_or_time(end, timezone, is_all_day, "end_time")
    if end <= start:
        hint = " It is exclusive: of a day alone, send the next day." if is_all_day else ""
        raise InvalidFields.one("end_time", f"Must be after start_time.{hint}")
    if end - start > _LONGEST:
        raise InvalidFields.one("end_time", "An event may last a year at most.")
    return start, end


def _day_or_time(at: datetime, timezone: str, is_all_day: bool, name: str) -> datetime:
    """Of an all-day event: a date, which arrives as a midnight in UTC, or a midnight of the zone."""
    if not is_all_day:
        return at.replace(microsecond=0)  # iCalendar knows whole seconds alone
    day = midnight(wall(at, timezone))
    # Where the clocks skip midnight, the day's first moment is another one.
    if at == instant(day, timezone) or wall(at, timezone) == day:
        return instant(day, timezone)
    if at.replace(tzinfo=None) == midnight(at.replace(tzinfo=None)):
        return instant(at.replace(tzinfo=None), timezone)
    raise InvalidFields.one(name, "Of an all-day event, send a date such as 2026-11-24.")


def _expand_at(master: EventComponent) -> datetime | None:
    """None for a series that is over too: it has all its rows."""
    now, ends_at = utcnow(), last_end(master)
    is_over = ends_at is not None and ends_at <= now
    return None if master.rrule is None or master.is_cancelled or is_over else now + _EXPAND_EVERY


async def _save(
    session: Session,
    hosting: Hosting,
    calendar: LocalCalendar,
    components: Mapping[str, EventComponent],
    *,
    changed: Iterable[EventComponent],
) -> None:
    master = components[""]
    await repository.save_components(
        session, calendar, list(changed), ends_at=last_end(master), expand_at=_expand_at(master)
    )
    await _write_rows(session, hosting, calendar, components)


async def _write_rows(
    session: Session, hosting: Hosting, calendar: LocalCalendar, components: Mapping[str, EventComponent]
) -> None:
    """Brings calendar_events to what the components say, and announces what changed."""
    settings, now, master = hosting.settings, utcnow(), components[""]
    window = Window(now - settings.sync_window_past_for, now + settings.sync_window_future_for + _MARGIN)
    remote = expand(
        master,
        [component for recurrence_key, component in components.items() if recurrence_key],
        window,
        organizer=organizer_of(calendar),
        owner_email=calendar.owner_email,
        hosts=meeting_hosts(settings),
        undelivered=await find_undelivered(session, calendar.calendar_id, master.uid),
    )
    listed = {event.platform_uuid for event in remote}
    live = await repository.load_live_rows(session, calendar.calendar_id, master.uid)
    removed = [
        event_id
        for event_id, platform_uuid, start in live
        if platform_uuid not in listed
        # What was in the past when the series changed stays; a series that is called off goes as a whole.
        and (
            master.is_cancelled
            or master.rrule is None
            or start is None
            or start >= window.start
            or platform_uuid == master.uid
        )
    ]
    cancelled = {
        f"{component.uid}_{recurrence_key}"
        for recurrence_key, component in components.items()
        if recurrence_key and component.is_cancelled
    }
    removed += [
        event_id
        for event_id, platform_uuid, _ in live
        if platform_uuid in cancelled and event_id not in removed
    ]
    # Hosted events are shown wherever they are: the window bounds the instances of series alone.
    everywhere = Window(datetime.min.replace(tzinfo=now.tzinfo), datetime.max.replace(tzinfo=now.tzinfo))
    written = await apply_changes(
        session,
        calendar,
        remote,
        window=everywhere,
        removed=dict.fromkeys(removed),
        earlier=Unannounced(),
        is_announced_now=True,
    )
    await announce_changes(session, calendar.project_id, _facts(calendar), calendar, written)


def _facts(calendar: LocalCalendar) -> CalendarFacts:
    return CalendarFacts(
        id=calendar.calendar_id,
        deduplication_key=calendar.deduplication_key,
        metadata=calendar.metadata,
    )


async def _required_rows(
    session: Session, calendar: LocalCalendar, uid: str
) -> list[tuple[str, str, datetime | None]]:
    """As `repository.load_live_rows`. Raises InvalidFields for a series that is over, which has none."""
    rows = await repository.load_live_rows(session, calendar.calendar_id, uid)
    if not rows:
        raise InvalidFields.one("recurrence", "The series has no instance from now on.")
    return rows


async def _moved_id(
    session: Session, calendar: LocalCalendar, uid: str, event_id: str, start: datetime
) -> str:
    """The event that starts where the named one was moved to; else that one, if it is still there, or the next or last.

    Raises InvalidFields for a series that is over.
    """
    rows = await _required_rows(session, calendar, uid)
    still = event_id if event_id in {row[0] for row in rows} else _next_id(rows)
    return next((row[0] for row in rows if row[2] == start), still)


async def _id_of(session: Session, calendar: LocalCalendar, component: EventComponent) -> str:
    """The row that stands for the component; for a series its next instance, or its last one."""
    if component.recurrence_key:
        found = await repository.find_event_id(
            session, calendar.calendar_id, f"{component.uid}_{component.recurrence_key}"
        )
        if found is not None:
            return found
    return _next_id(await repository.load_live_rows(session, calendar.calendar_id, component.uid))


def _next_id(rows: Sequence[tuple[str, str, datetime | None]]) -> str:
    now = utcnow()
    return next((row[0] for row in rows if row[2] is not None and row[2] >= now), rows[-1][0])


async def _announce_answer(
    session: Session,
    calendar: LocalCalendar,
    component: EventComponent,
    before: Attendee,
    after: Attendee,
    *,
    event_id: str,
) -> None:
    await announce(
        session,
        project_id=calendar.project_id,
        trigger="event.rsvp_update",
        calendar=_facts(calendar),
        calendar_event_id=event_id,
        data={
            "response_status": after.response_status,
            "previous_response_status": before.response_status,
            "attendee": {"email": after.email, "name": after.name, "is_optional": after.is_optional},
            "ical_uid": component.uid,
            "scope": "instance"
            if component.recurrence_key
            else "series"
            if component.rrule is not None
            else "event",
            "original_start_time": isoformat(component.recurrence_id) if component.recurrence_id else None,
            "answered_at": isoformat(after.replied_at) if after.replied_at is not None else None,
        },
    )


async def _queue(
    session: Session, hosting: Hosting, calendar: LocalCalendar, mails: Sequence[PlannedMail]
) -> None:
    """Writes the mails' outbox rows. Raises InvalidFields where there is no way out for them."""
    if not mails:
        return
    sender = sender_of(calendar, hosting.settings)
    if sender is None:
        raise InvalidFields.one("send_invitations", _no_way_out(calendar))
    tokens, app_url = hosting.tokens, hosting.settings.app_url
    for mail in mails:
        links: dict[str, RsvpLinks] = {}
        if mail.method == "REQUEST":
            for person in mail.recipients:
                subject = Subject(
                    calendar.calendar_id, mail.component.uid, mail.component.recurrence_key, person.email
                )
                accepted, tentative, declined = tokens.links(subject, app_url)
                links[person.email] = RsvpLinks(accepted=accepted, tentative=tentative, declined=declined)
        await queue_mails(
            session,
            project_id=calendar.project_id,
            calendar_id=calendar.calendar_id,
            event=mail.component.for_mail(
                organizer_of(calendar),
                hosts=_own_addresses(calendar),
                excluded=mail.excluded,
                guests=mail.guests,
                overrides=mail.overrides,
            ),
            method=mail.method,
            recipients=[person.guest for person in mail.recipients],
            sender=sender,
            locale=calendar.locale,
            rsvp_links=links or None,
        )


def _no_way_out(calendar: LocalCalendar) -> str:
    if calendar.identity is not None:
        return (
            "The calendar sends from a Messages mailbox, but FEATURE_MESSAGES_INTEGRATION is off. Turn it on, remove "
            "the calendar's sending_identity, or send send_invitations: false."
        )
    return (
        "There is no way to send invitations: the calendar has no sending_identity and SMTP_URL is not set. Give the "
        "calendar a mailbox, set SMTP_URL and EMAIL_FROM, or send send_invitations: false."
    )
