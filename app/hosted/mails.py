"""Pure: who is told what of a change (contract/messages.md, RFC 5546), and how a change raises SEQUENCE."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from app.core.addresses import fold_address
from app.hosted.entries import Attendee, Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMail:
    """One kind of mail of one entry. `guests` are those that the mail's calendar object lists."""

    method: Literal["REQUEST", "CANCEL"]
    entry: Entry
    recipients: tuple[Attendee, ...]
    guests: tuple[Attendee, ...]


def has_moved(before: Entry, after: Entry) -> bool:
    """Whether former answers no longer count: RFC 5546 2.1.4."""
    if before.rrule is not None and before.timezone != after.timezone:
        return True
    return (before.start, before.end, before.is_all_day, before.rrule) != (
        after.start,
        after.end,
        after.is_all_day,
        after.rrule,
    )


def revise(before: Entry, after: Entry, *, above: int = 0) -> Entry:
    """`after` with the SEQUENCE that the change asks for; where the time changed, everybody is asked again.

    Of a series, `above` is the highest SEQUENCE of its instances: a change of them all must not look older than that.
    """
    if before.is_cancelled or before == after:
        return replace(after, sequence=before.sequence)
    moved = has_moved(before, after)
    removed = _without(before.attendees, after.attendees)
    grows = moved or _has_another_place(before, after) or removed or after.is_cancelled
    sequence = max(before.sequence, above) + 1 if grows else before.sequence
    attendees = after.attendees
    if moved:
        # A reply to an older SEQUENCE is about the old time, so it is stale.
        attendees = tuple(
            replace(
                one,
                response_status="needs_action",
                sequence=sequence,
                replied_at=None,
                has_own_answer=False,
            )
            for one in attendees
        )
    return replace(after, sequence=sequence, attendees=attendees)


def plan_mails(before: Entry | None, after: Entry, *, organizer_emails: Sequence[str]) -> list[PlannedMail]:
    """The mails of one entry's change; `before` is None for a new event. Nobody invites himself.

    Added: REQUEST. Removed: CANCEL. Time or place changed: REQUEST to all. Cancelled: CANCEL to all. Nothing else.
    """

    def others(people: Sequence[Attendee]) -> tuple[Attendee, ...]:
        return _except(people, organizer_emails)

    if after.is_cancelled:
        if before is None or before.is_cancelled:
            return []
        people = others(before.attendees)
        return _mails("CANCEL", after, people, people)
    if before is None or before.is_cancelled:
        return _mails("REQUEST", after, others(after.attendees), after.attendees)
    removed = _without(before.attendees, after.attendees)
    mails = _mails("CANCEL", after, others(removed), after.attendees)
    if has_moved(before, after) or _has_another_place(before, after):
        told = after.attendees
    else:
        told = _without(after.attendees, before.attendees)
    return [*mails, *_mails("REQUEST", after, others(told), after.attendees)]


def plan_dropped(
    instances: Iterable[Entry], told: Sequence[Attendee], *, organizer_emails: Sequence[str], now: datetime
) -> list[PlannedMail]:
    """CANCELs for those who were invited to changed instances alone, when these go with their series.

    `told` are the guests who get the series' own mail.
    """
    mails = []
    for entry in instances:
        if entry.is_cancelled or entry.end <= now:
            continue
        people = _except(_without(entry.attendees, told), organizer_emails)
        mails += _mails("CANCEL", revise(entry, replace(entry, is_cancelled=True)), people, people)
    return mails


def to_answerers(mails: Iterable[PlannedMail]) -> list[PlannedMail]:
    """These mails, but only to those who answered the instance by itself.

    An instance that was only answered is in nobody else's calendar but as a part of the series, whose mail tells it all.
    """
    told = [
        replace(mail, recipients=tuple(one for one in mail.recipients if one.has_own_answer))
        for mail in mails
    ]
    return [mail for mail in told if mail.recipients]


def _mails(
    method: Literal["REQUEST", "CANCEL"],
    entry: Entry,
    recipients: tuple[Attendee, ...],
    guests: tuple[Attendee, ...],
) -> list[PlannedMail]:
    return (
        [PlannedMail(method=method, entry=entry, recipients=recipients, guests=guests)] if recipients else []
    )


def _has_another_place(before: Entry, after: Entry) -> bool:
    return (before.location, before.meeting_url) != (after.location, after.meeting_url)


def _except(people: Sequence[Attendee], addresses: Sequence[str]) -> tuple[Attendee, ...]:
    keys = {fold_address(email) for email in addresses}
    return tuple(one for one in people if fold_address(one.email) not in keys)


def _without(people: Sequence[Attendee], others: Sequence[Attendee]) -> tuple[Attendee, ...]:
    return _except(people, [one.email for one in others])
