"""Record guests' replies to invitations, and send them on to the organizer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import structlog

from app.core.addresses import fold_address
from app.core.clock import isoformat, utcnow
from app.core.db import AnySession, Session
from app.events.data import ResponseStatus
from app.hosted import repository
from app.hosted.calendar import LocalCalendar
from app.hosted.components import Attendee, EventComponent
from app.hosted.instances import find_component
from app.hosted.rows import facts_of, find_id, save
from app.hosted.rules import last_end
from app.invitations.service import find_sent_sequence, queue_mails
from app.itip.event import Person
from app.settings import Settings
from app.webhooks.outbox import announce

log = structlog.get_logger()

Outcome = Literal["applied", "unchanged", "stale", "unknown_event", "cancelled", "not_invited", "over"]


@dataclass(frozen=True, slots=True)
class LoadedEvent:
    """Event of a local calendar with all that is needed to reply to it.

    `components` are all of its components by recurrence key; the event or series itself has ''. `has_instances` is
    False for a series whose instances were all deleted one by one.
    """

    calendar: LocalCalendar
    components: Mapping[str, EventComponent]
    has_instances: bool = True

    @property
    def series(self) -> EventComponent:
        """The event or series itself."""
        return self.components[""]

    def find(self, recurrence_key: str) -> EventComponent | None:
        """Return the event, the series ('') or one of its instances, changed or not."""
        return find_component(self.components, recurrence_key)

    def is_cancelled(self, component: EventComponent) -> bool:
        """Return whether the component or its series is cancelled, or the series has no instances left."""
        is_empty = component.rrule is not None and not self.has_instances
        return component.is_cancelled or self.series.is_cancelled or is_empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Reply of a guest to an event, a series (`recurrence_key` '') or an instance.

    `sequence` is the SEQUENCE that the reply is about; None for the current one, which is never stale.
    """

    recurrence_key: str
    email: str
    response_status: ResponseStatus
    sequence: int | None
    replied_at: datetime


@dataclass(frozen=True, slots=True)
class RecordedReply:
    """Outcome of a reply, and the event as it is now."""

    outcome: Outcome
    event: LoadedEvent


async def load_event(session: AnySession, calendar: LocalCalendar, uid: str) -> LoadedEvent | None:
    """Return the event of this UID; None if the calendar has none."""
    components = await repository.load_components(session, calendar.calendar_id, uid)
    if "" not in components:
        return None
    is_series = components[""].rrule is not None
    has_instances = not is_series or await repository.has_live_rows(session, calendar.calendar_id, uid)
    return LoadedEvent(calendar, components, has_instances)


async def record_reply(
    session: Session, settings: Settings, event: LoadedEvent, reply: Reply, *, notify_organizer: bool
) -> RecordedReply:
    """Write the reply and announce it; with `notify_organizer`, mail the organizer a REPLY.

    The caller holds the lock of the calendar's row since before the event was loaded.
    """
    component = event.find(reply.recurrence_key)
    if component is None:
        return RecordedReply("unknown_event", event)
    if event.is_cancelled(component):
        return RecordedReply("cancelled", event)
    person = component.find(reply.email)
    if person is None:
        return RecordedReply("not_invited", event)
    ends_at = last_end(component)
    if ends_at is not None and ends_at <= utcnow():
        return RecordedReply("over", event)
    if reply.sequence is None:
        sequence = await _find_known_sequence(session, event.calendar, component, person)
    else:
        # A SEQUENCE that was never sent must not make later replies stale.
        sequence = min(reply.sequence, component.sequence)
        if person.is_stale(sequence, reply.replied_at):
            return RecordedReply("stale", event)
    replied = replace(
        person,
        response_status=reply.response_status,
        sequence=sequence,
        replied_at=reply.replied_at,
        has_own_reply=bool(reply.recurrence_key),
    )
    changed = {component.recurrence_key: component.with_attendee(replied)}
    if not reply.recurrence_key:
        changed |= _propagate_reply(event.components, reply, sequence)
    components = {**event.components, **changed}
    await save(session, settings, event.calendar, components, changed=changed.values())
    after = replace(event, components=components)
    if person.response_status == reply.response_status:
        return RecordedReply("unchanged", after)
    await _announce(session, event.calendar, component, person, replied)
    if notify_organizer:
        await _queue_reply(session, settings, event.calendar, changed[component.recurrence_key], replied)
    return RecordedReply("applied", after)


async def _find_known_sequence(
    session: AnySession, calendar: LocalCalendar, component: EventComponent, person: Attendee
) -> int:
    """Return the SEQUENCE that this guest knows of.

    Others may have had mails with a higher one. With that, a later reply by mail of this guest would be stale.
    """
    sent = await find_sent_sequence(
        session, calendar.calendar_id, component.uid, component.recurrence_id, fold_address(person.email)
    )
    return min(component.sequence, max(person.sequence or 0, sent))


def _propagate_reply(
    components: Mapping[str, EventComponent], reply: Reply, sequence: int
) -> dict[str, EventComponent]:
    """Return the changed instances to which a reply to the series applies too.

    These are the ones without a reply of their own.
    """
    changed: dict[str, EventComponent] = {}
    for key, component in components.items():
        person = component.find(reply.email)
        if not key or person is None or person.has_own_reply:
            continue
        # A reply to an earlier version of the series does not accept the new time of a moved instance.
        if reply.sequence is None or not person.is_stale(sequence, reply.replied_at):
            changed[key] = component.with_attendee(
                replace(person, response_status=reply.response_status, replied_at=reply.replied_at)
            )
    return changed


async def _announce(
    session: Session, calendar: LocalCalendar, component: EventComponent, before: Attendee, after: Attendee
) -> None:
    scope = "instance" if component.recurrence_key else "series" if component.rrule is not None else "event"
    await announce(
        session,
        project_id=calendar.project_id,
        trigger="event.rsvp_update",
        calendar=facts_of(calendar),
        calendar_event_id=await find_id(session, calendar, component),
        data={
            "response_status": after.response_status,
            "previous_response_status": before.response_status,
            "attendee": {"email": after.email, "name": after.name, "is_optional": after.is_optional},
            "ical_uid": component.uid,
            "scope": scope,
            "original_start_time": isoformat(component.recurrence_id) if component.recurrence_id else None,
            "answered_at": isoformat(after.replied_at) if after.replied_at is not None else None,
        },
    )


async def _queue_reply(
    session: Session,
    settings: Settings,
    calendar: LocalCalendar,
    component: EventComponent,
    replied: Attendee,
) -> None:
    """Write the mail that brings a guest's reply to the calendar's owner."""
    sender = calendar.sender(settings)
    if sender is None:
        log.warning("rsvp_reply_not_mailed", calendar_id=calendar.calendar_id, reason="no way to send mails")
        return
    await queue_mails(
        session,
        project_id=calendar.project_id,
        calendar_id=calendar.calendar_id,
        event=component.for_mail(calendar.organizer),
        method="REPLY",
        recipients=[Person(email=calendar.owner_email, name=calendar.owner_name)],
        sender=sender,
        locale=calendar.locale,
        replying=replied.guest,
    )
