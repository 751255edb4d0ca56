"""Events of local calendars: written, expanded, told by webhook and by mail, all in one transaction (contract 4).

A change of one instance makes an entry of its own beside the series. A change of the series goes to those entries
too, where they still had what the series had. A change of the series' times makes all instances new: changes and
cancellations of single instances are dropped. Another rule keeps those whose original start it still has.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

import structlog

from app.api.not_found import CalendarEventNotFound, CalendarNotFound
from app.bots.service import follow_events
from app.core.addresses import fold_address
from app.core.clock import isoformat, utcnow
from app.core.db import AnySession, Session, Sessions, reading, transaction
from app.core.errors import InvalidFields
from app.core.wakeups import Doorbell
from app.events import repository as events
from app.events.changes import describe_changes
from app.events.data import ResponseStatus, Window
from app.events.diff import content_hash, diff_events
from app.events.repository import Unannounced
from app.events.visibility import enter_as_writer
from app.hosted import repository
from app.hosted.entries import Attendee, Entry, instance_of, instant, midnight, wall
from app.hosted.expand import LAST_YEAR, expand, fit_rule, has_slot, last_end, move_until, slot_of
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
from app.hosted.repository import EventPlace, LocalCalendar
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
from app.webhooks.outbox import announce, wants_events
from app.webhooks.payloads import CalendarFacts, state_data

log = structlog.get_logger()

Scope = Literal["instance", "series"]

_PROVIDERS = {"google": "Google", "microsoft": "Microsoft", "ics": "its iCal feed"}

_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(days=1)
_LONGEST = timedelta(days=366)
# Series are expanded this much further than promised, and again before that is used up.
_MARGIN = timedelta(days=2)
_EXPAND_EVERY = timedelta(days=1)
_EXPAND_AGAIN = timedelta(minutes=1)  # after a fault
_EXPANDED_AT_ONCE = 100
# What names an event's fields in requests, and how entries call them.
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
    place = await repository.find_place(session, project_id, event_id)
    if place is None:
        raise CalendarEventNotFound
    if place.platform != "local":
        raise InvalidFields.one("non_field_errors", _read_only(place.platform))


def _read_only(platform: str) -> str:
    return (
        f"This is a {platform} calendar, and access to it is read-only: change its events at "
        f"{_PROVIDERS.get(platform, platform)}."
    )


async def create_event(session: Session, hosting: Hosting, project_id: str, body: CalendarEventCreate) -> str:
    """The id of the event, or of the series' first instance. The caller rings "deliveries" and "mails".

    Raises CalendarNotFound, InvalidFields (also where mails would be needed and there is no way out).
    """
    calendar = await repository.lock_calendar(session, body.calendar_id, project_id)
    if calendar is None:
        raise CalendarNotFound
    timezone = body.timezone or calendar.timezone
    start, end = _times(body.start_time, body.end_time, timezone, is_all_day=body.is_all_day)
    entry = Entry(
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
    entry = _with_rule(entry, body.recurrence)
    mails = plan_mails(None, entry, organizer_emails=_own_addresses(calendar), now=utcnow())
    await _save(session, hosting, calendar, {"": entry}, changed=[entry])
    event_id, *_ = (await _required_rows(session, calendar, entry.uid))[0]
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
    """The id of the event, or of an instance of the changed series. The caller rings "deliveries" and "mails".

    Raises CalendarEventNotFound, InvalidFields.
    """
    calendar, place, entries = await _lock(session, project_id, event_id)
    if place.is_deleted or entries[""].is_cancelled:
        raise InvalidFields.one("non_field_errors", "This event was deleted.")
    of_series = entries[""].rrule is not None and scope == "instance"
    if of_series and body.recurrence is not None:
        raise InvalidFields.one(
            "recurrence", "An instance has no rule: use ?scope=series to change the series."
        )
    before = _instance(entries, place) if of_series else entries[""]
    origin = _origin(entries, place, scope)
    after = _patched(before, body, origin)
    if after == before:
        return event_id
    above = await _highest_sequence(session, calendar, entries)
    # Guests whose calendar may have the series without this instance, in EXDATE: they get the series again.
    back = _invited_back(before, after, entries[""]) if of_series else ()
    if back:
        above += 1
    after = revise(before, after, above=above)
    changed = {before.slot: after}
    dropped: list[str] = []
    own, now = _own_addresses(calendar), utcnow()
    if of_series:
        mails = plan_mails(before, after, organizer_emails=own, now=now)
        if back:
            series = replace(entries[""], sequence=above)
            instances = {slot: entry for slot, entry in {**entries, after.slot: after}.items() if slot}
            again = plan_series(
                replace(series, attendees=without(series.attendees, back)),
                series,
                [(entry, entry) for entry in instances.values()],
                told=await find_told_instances(session, calendar.calendar_id, before.uid),
                plain=lambda at: _plain_instance(series, at),
                organizer_emails=own,
                now=now,
            )
            changed = {"": series, **_as_told(again, instances), after.slot: after}
            mails = [*again, *told_beside(mails, again)]
    else:
        dropped = _dropped(entries, before, after)
        instances = {slot: entry for slot, entry in entries.items() if slot and slot not in dropped}
        followed = _followed(instances, before, after)
        mails = plan_series(
            before,
            after,
            [(entry, followed.get(slot, entry)) for slot, entry in instances.items()],
            told=await find_told_instances(session, calendar.calendar_id, before.uid),
            plain=lambda at: _plain_instance(after, at),
            organizer_emails=own,
            now=now,
        )
        changed |= followed
        changed |= _as_told(mails, {**instances, **followed})
        told = (*before.attendees, *after.attendees)
        mails += plan_dropped(
            (entries[slot] for slot in dropped),
            told,
            above=after.sequence,
            organizer_emails=own,
            now=now,
        )
    kept = {slot: entry for slot, entry in {**entries, **changed}.items() if slot not in dropped}
    await repository.delete_entries(session, before.uid, dropped)
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
    calendar, place, entries = await _lock(session, project_id, event_id)
    if entries[""].is_cancelled or (place.is_deleted and scope == "instance"):
        return
    of_series = entries[""].rrule is not None and scope == "instance"
    before = _instance(entries, place) if of_series else entries[""]
    above = await _highest_sequence(session, calendar, entries)
    after = revise(before, replace(before, is_cancelled=True), above=above)
    own, now = _own_addresses(calendar), utcnow()
    mails = plan_mails(before, after, organizer_emails=own, now=now)
    if not of_series:
        instances = (entry for slot, entry in entries.items() if slot)
        mails += plan_dropped(instances, before.attendees, above=above, organizer_emails=own, now=now)
    kept = {**entries, after.slot: after}
    await _save(session, hosting, calendar, kept, changed=[after])
    if send_invitations:
        await _queue(session, hosting, calendar, mails)


@dataclass(frozen=True, slots=True)
class Answer:
    """An attendee's answer to an event, a series (`slot` '') or an instance."""

    uid: str
    slot: str
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

    The caller holds the calendar's row lock, and rings "deliveries" and "mails".
    """
    entries = await repository.load_entries(session, calendar.calendar_id, answer.uid)
    entry = find_entry(entries, answer.slot)
    if entry is None:
        return "unknown_event"
    if entry.is_cancelled or entries[""].is_cancelled or await has_no_instance(session, calendar, entry):
        return "cancelled"
    person = entry.find(answer.email)
    if person is None:
        return "not_invited"
    ends_at = last_end(entry)
    if ends_at is not None and ends_at <= utcnow():
        return "over"
    if answer.sequence is not None:
        # A SEQUENCE that was never sent must not shut out the answers that follow.
        sequence = min(answer.sequence, entry.sequence)
        if person.is_stale(sequence, answer.replied_at):
            return "stale"
    else:
        # What this guest knows of: others may have been told more, and a later answer by mail must still count.
        sequence = await find_told_sequence(
            session, calendar.calendar_id, entry.uid, entry.recurrence_id, fold_address(answer.email)
        )
        sequence = min(entry.sequence, max(person.sequence or 0, sequence))
    answered = replace(
        person,
        response_status=answer.response_status,
        sequence=sequence,
        replied_at=answer.replied_at,
        has_own_answer=bool(answer.slot),
    )
    changed = {entry.slot: entry.with_attendee(answered)}
    if not answer.slot:
        for other in entries.values():
            same = other.find(answer.email)
            if not other.slot or same is None or same.has_own_answer:
                continue
            # An answer to the series of before the instance was moved does not say yes to its new time.
            if answer.sequence is None or not same.is_stale(sequence, answer.replied_at):
                changed[other.slot] = other.with_attendee(
                    replace(same, response_status=answer.response_status, replied_at=answer.replied_at)
                )
    kept = {**entries, **changed}
    is_news = person.response_status != answer.response_status
    await _save(session, hosting, calendar, kept, changed=changed.values())
    if not is_news:
        return "unchanged"
    event_id = await _id_of(session, calendar, entry)
    await _announce_answer(session, calendar, entry, person, answered, event_id=event_id)
    sender = sender_of(calendar, hosting.settings)
    if tell_organizer and sender is None:
        log.warning("rsvp_reply_not_mailed", calendar_id=calendar.calendar_id, reason="no way out for mails")
    elif tell_organizer and sender is not None:
        await queue_mails(
            session,
            project_id=calendar.project_id,
            calendar_id=calendar.calendar_id,
            event=changed[entry.slot].for_mail(organizer_of(calendar)),
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
    entries = await repository.load_entries(session, calendar_id, uid)
    if "" in entries:
        # First: what happens from here on sets it anew.
        await repository.set_expand_at(session, uid, _expand_at(entries[""]))
        await _write_rows(session, hosting, calendar, entries)


async def write_rows_soon(session: Session, calendar_id: str, uid: str | None = None) -> None:
    """Have a worker write the rows of this event anew, or of all of the calendar's events."""
    await repository.write_rows_soon(session, calendar_id, uid)


async def keep_all_expanded(sessions: Sessions, hosting: Hosting, doorbell: Doorbell) -> None:
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
        if due:
            await doorbell.ring("deliveries")
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
) -> tuple[LocalCalendar, EventPlace, dict[str, Entry]]:
    """The event's calendar, locked, and what is stored of the event. Raises CalendarEventNotFound."""
    found = await repository.find_place(session, project_id, event_id)
    if found is None:
        raise CalendarEventNotFound
    calendar = await repository.lock_calendar(session, found.calendar_id, project_id)
    # Once more, under the lock.
    place = await repository.find_place(session, project_id, event_id)
    if calendar is None or place is None:
        raise CalendarEventNotFound
    entries = await repository.load_entries(session, calendar.calendar_id, place.uid)
    if "" not in entries:
        raise CalendarEventNotFound
    return calendar, place, entries


def _instance(entries: Mapping[str, Entry], place: EventPlace) -> Entry:
    """The entry of one instance: its own, or what the series says of it."""
    known = entries.get(place.slot)
    if known is not None:
        return known
    assert place.original_start_time is not None
    return instance_of(entries[""], place.original_start_time, place.slot)


def find_entry(entries: Mapping[str, Entry], slot: str) -> Entry | None:
    """The entry that an answer is about; an instance that was never changed gets one."""
    master = entries.get("")
    if master is None or slot in entries:
        return entries.get(slot)
    if not has_slot(master, slot):
        return None
    form = "%Y%m%dT%H%M%SZ" if "T" in slot else "%Y%m%d"
    local = datetime.strptime(slot, form)  # noqa: DTZ007 - its zone follows
    at = instant(local, master.timezone if master.is_all_day else "UTC")
    return instance_of(master, at, slot)


async def has_no_instance(session: AnySession, calendar: LocalCalendar, entry: Entry) -> bool:
    """Whether each instance of this series was deleted by itself; nobody cancelled the series then."""
    if entry.rrule is None:
        return False
    return not await repository.load_live_rows(session, calendar.calendar_id, entry.uid)


def _plain_instance(series: Entry, original_start: datetime) -> Entry | None:
    """The instance of that original start, if the series has one."""
    if series.is_all_day:
        # The day that was told, which began at the midnight of the series' zone of then.
        day = midnight(wall(original_start, series.timezone) + _DAY / 2)
        original_start = instant(day, series.timezone)
    slot = slot_of(series, original_start)
    return instance_of(series, original_start, slot) if has_slot(series, slot) else None


async def _highest_sequence(
    session: AnySession, calendar: LocalCalendar, entries: Mapping[str, Entry]
) -> int:
    """That anybody was told of the event or of one of its instances."""
    uid = entries[""].uid
    told = await find_highest_sequence(session, calendar.calendar_id, uid)
    return max(told, *(entry.sequence for entry in entries.values()))


def _dropped(entries: Mapping[str, Entry], before: Entry, after: Entry) -> list[str]:
    """The slots of the entries that a change of the series leaves no place for."""
    slots = [slot for slot in entries if slot]
    if has_new_times(before, after):
        return slots
    return [] if before.rrule == after.rrule else [slot for slot in slots if not has_slot(after, slot)]


def _origin(entries: Mapping[str, Entry], place: EventPlace, scope: Scope) -> Entry:
    """What the request's times are about: the instance that was named, also where the whole series is to move."""
    if entries[""].rrule is None or scope == "instance" or place.original_start_time is None:
        return entries[""]
    return instance_of(entries[""], place.original_start_time, place.slot)


def _patched(before: Entry, body: CalendarEventUpdate, origin: Entry) -> Entry:
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
    entry = replace(before, **values)
    if "recurrence" in given and not body.recurrence and before.rrule is not None:
        # One event from now on: the instance that was named.
        entry = replace(entry, rrule=None, start=origin.start, end=origin.end)
    if given & {"start_time", "end_time", "timezone", "is_all_day"}:
        entry = _moved(entry, body, origin)
    if "recurrence" in given:
        entry = _with_rule(replace(entry, rrule=None), body.recurrence)
    elif entry.rrule is not None:
        entry = _with_rule(entry, [entry.rrule])
    return entry


def _moved(entry: Entry, body: CalendarEventUpdate, origin: Entry) -> Entry:
    """With new times. Of a series, the times in the request are those of the named instance."""
    timezone = body.timezone or entry.timezone
    is_all_day = body.is_all_day if "is_all_day" in body.model_fields_set else entry.is_all_day
    if is_all_day != entry.is_all_day and (body.start_time is None or body.end_time is None):
        raise InvalidFields.one("is_all_day", "Send start_time and end_time too.")
    moved = replace(entry, timezone=timezone, is_all_day=is_all_day)
    current = origin if entry.rrule is not None else entry
    if body.start_time is None and body.end_time is None:
        if not is_all_day:
            return moved
        # Days stay days, wherever they are.
        start, end = instant(entry.local(entry.start), timezone), instant(entry.local(entry.end), timezone)
        return replace(moved, start=start, end=end)
    start_given, end_given = body.start_time, body.end_time
    if start_given is None:
        start_given = instant(current.local(current.start), timezone) if is_all_day else current.start
    if end_given is None:
        local = moved.local(_day_or_time(start_given, timezone, is_all_day, "start_time"))
        end_given = instant(local + current.length, timezone)
    start, end = _times(start_given, end_given, timezone, is_all_day=is_all_day)
    if entry.rrule is None:
        return replace(moved, start=start, end=end)
    # From what the clock shows now to what it is to show, so that the named instance comes to where it was sent.
    length = replace(moved, start=start, end=end).length
    shift = moved.local(start) - current.local(current.start)
    local = entry.local(entry.start) + shift
    return replace(
        moved,
        start=instant(local, timezone),
        end=instant(local + length, timezone),
        rrule=move_until(entry, shift),
    )


def _invited_back(before: Entry, after: Entry, series: Entry) -> tuple[Attendee, ...]:
    """Guests of the series who were not invited to this instance of it, and are now."""
    return tuple(
        one
        for one in after.attendees
        if before.find(one.email) is None and series.find(one.email) is not None
    )


def _as_told(mails: Sequence[PlannedMail], instances: Mapping[str, Entry]) -> dict[str, Entry]:
    """The instances that these mails tell again, with the SEQUENCE that they have there: newer than the series."""
    told = [entry for mail in mails for entry in (mail.entry, *mail.overrides)]
    return {
        entry.slot: replace(instances[entry.slot], sequence=entry.sequence)
        for entry in told
        if entry.slot in instances
    }


def _followed(instances: Mapping[str, Entry], before: Entry, after: Entry) -> dict[str, Entry]:
    """The changed instances with the series' change, where they had what the series had."""
    followed: dict[str, Entry] = {}
    old_people = {fold_address(one.email): one for one in before.attendees}
    new_people = {fold_address(one.email): one for one in after.attendees}
    is_asked_again = has_moved(before, after)
    for slot, entry in instances.items():
        if entry.is_cancelled:
            continue
        values = {
            name: getattr(after, name)
            for name in _PLAIN_FIELDS
            if getattr(before, name) != getattr(after, name) and getattr(entry, name) == getattr(before, name)
        }
        people = {fold_address(one.email): one for one in entry.attendees}
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
        changed = replace(entry, **values, attendees=(*kept, *added))
        if changed != entry:
            followed[slot] = revise(entry, changed, above=after.sequence)
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


def _with_rule(entry: Entry, recurrence: Sequence[str] | None) -> Entry:
    """With the rule, which fits its start. Raises InvalidFields."""
    if not recurrence:
        return entry
    try:
        return replace(entry, rrule=fit_rule(recurrence[0], entry))
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


def _expand_at(master: Entry) -> datetime | None:
    """None for a series that is over too: it has all its rows."""
    now, ends_at = utcnow(), last_end(master)
    is_over = ends_at is not None and ends_at <= now
    return None if master.rrule is None or master.is_cancelled or is_over else now + _EXPAND_EVERY


async def _save(
    session: Session,
    hosting: Hosting,
    calendar: LocalCalendar,
    entries: Mapping[str, Entry],
    *,
    changed: Iterable[Entry],
) -> None:
    master = entries[""]
    await repository.save_entries(
        session, calendar, list(changed), ends_at=last_end(master), expand_at=_expand_at(master)
    )
    await _write_rows(session, hosting, calendar, entries)


async def _write_rows(
    session: Session, hosting: Hosting, calendar: LocalCalendar, entries: Mapping[str, Entry]
) -> None:
    """Brings calendar_events to what the entries say, and announces what changed."""
    settings, now, master = hosting.settings, utcnow(), entries[""]
    window = Window(now - settings.sync_window_past_for, now + settings.sync_window_future_for + _MARGIN)
    remote = expand(
        master,
        [entry for slot, entry in entries.items() if slot],
        window,
        organizer=organizer_of(calendar),
        owner_email=calendar.owner_email,
        hosts=meeting_hosts(settings),
        undelivered=await find_undelivered(session, calendar.calendar_id, master.uid),
    )
    hashes = {event.platform_uuid: content_hash(event) for event in remote}
    stored = await events.load_stored(session, calendar.calendar_id, list(hashes))
    # Hosted events are shown wherever they are: the window bounds the instances of series alone.
    everywhere = Window(datetime.min.replace(tzinfo=now.tzinfo), datetime.max.replace(tzinfo=now.tzinfo))
    writes = diff_events(remote, hashes, stored, everywhere)
    live = await repository.load_live_rows(session, calendar.calendar_id, master.uid)
    gone = [
        event_id
        for event_id, platform_uuid, start in live
        if platform_uuid not in hashes
        # What was in the past when the series changed stays; a series that is called off goes as a whole.
        and (
            master.is_cancelled
            or master.rrule is None
            or start is None
            or start >= window.start
            or platform_uuid == master.uid
        )
    ]
    cancelled = {f"{entry.uid}_{slot}" for slot, entry in entries.items() if slot and entry.is_cancelled}
    gone += [
        event_id for event_id, platform_uuid, _ in live if platform_uuid in cancelled and event_id not in gone
    ]
    if not writes and not gone:
        return
    wanted = await wants_events(session, calendar.project_id)
    known_ids = [write.stored_id for write in writes if write.stored_id is not None]
    content = await events.load_content(session, [*known_ids, *gone]) if wanted else {}
    first = await enter_as_writer(session, project_id=calendar.project_id, calendar_id=calendar.calendar_id)
    times = [first + n * _MICROSECOND for n in range(len(writes) + len(gone))]
    ids: list[str] = []
    if writes:
        ids = await events.write_events(session, calendar, writes, times[: len(writes)])
    if gone:
        await events.mark_deleted(session, gone, times[len(writes) :])
    await follow_events(session, [*known_ids, *gone])
    await events.record_changes(session, calendar, Unannounced(), last_change_at=times[-1])
    counts = Counter(write.change for write in writes)
    await announce(
        session,
        project_id=calendar.project_id,
        trigger="calendar.events_update",
        calendar=_facts(calendar),
        data={
            **state_data(calendar),
            "changes": {
                "created": counts["created"],
                "updated": counts["updated"],
                "deleted": counts["deleted"] + len(gone),
            },
            "updated_after": isoformat(first),
        },
        changed_events=describe_changes(writes, ids, gone, content) if wanted else [],
    )


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


async def _id_of(session: Session, calendar: LocalCalendar, entry: Entry) -> str:
    """The row that stands for the entry; for a series its next instance, or its last one."""
    if entry.slot:
        found = await repository.find_event_id(session, calendar.calendar_id, f"{entry.uid}_{entry.slot}")
        if found is not None:
            return found
    return _next_id(await repository.load_live_rows(session, calendar.calendar_id, entry.uid))


def _next_id(rows: Sequence[tuple[str, str, datetime | None]]) -> str:
    now = utcnow()
    return next((row[0] for row in rows if row[2] is not None and row[2] >= now), rows[-1][0])


async def _announce_answer(
    session: Session,
    calendar: LocalCalendar,
    entry: Entry,
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
            "ical_uid": entry.uid,
            "scope": "instance" if entry.slot else "series" if entry.rrule is not None else "event",
            "original_start_time": isoformat(entry.recurrence_id) if entry.recurrence_id else None,
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
                subject = Subject(calendar.calendar_id, mail.entry.uid, mail.entry.slot, person.email)
                accepted, tentative, declined = tokens.links(subject, app_url)
                links[person.email] = RsvpLinks(accepted=accepted, tentative=tentative, declined=declined)
        await queue_mails(
            session,
            project_id=calendar.project_id,
            calendar_id=calendar.calendar_id,
            event=mail.entry.for_mail(
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
