"""Plan the mails of a change (RFC 5546), and the SEQUENCE that the change gets. No database.

See docs/hosted-calendars.md, "Who gets a mail".

Two kinds of calendars must end with what the API shows: those that apply a series' REQUEST to the series alone and keep
the instances that they know, and those that take it as the whole set and drop the instances (sabre, Outlook). Guests
who get a series' REQUEST therefore get its changed instances again, with a higher SEQUENCE, and instances to which
they are not invited are in EXDATE.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from app.core.addresses import fold_address
from app.hosted.components import Attendee, EventComponent, is_unchanged
from app.hosted.rules import keeps_instances, last_end

# Instances that are sent again have a mail each: Outlook reads only the first event of a mail's calendar object
# (https://github.com/nextcloud/calendar/issues/4727). Above these limits they are all in the series' mail.
MOST_REPEATED = 10  # to one guest
MOST_REPEATED_MAILS = 500  # to all guests
# The soonest instances; about 60 kB.
MOST_IN_ONE_MAIL = 100
_MOST_DESCRIPTION = 100_000  # characters, all instances of one mail together


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMail:
    """Mails of one method about one component. `guests` are those that the mail's calendar object lists.

    For a series: `excluded` are the original starts of the instances to which these recipients are not invited;
    `overrides` are changed instances in the same mail.
    """

    method: Literal["REQUEST", "CANCEL"]
    component: EventComponent
    recipients: tuple[Attendee, ...]
    guests: tuple[Attendee, ...]
    excluded: tuple[datetime, ...] = ()
    overrides: tuple[EventComponent, ...] = ()


def has_new_times(before: EventComponent, after: EventComponent) -> bool:
    """Return whether the start, the end, the zone or the kind of the event changed.

    A rule with more or fewer instances does not count.
    """
    if (before.rrule is None) != (after.rrule is None):
        return True
    if before.rrule is not None and before.timezone != after.timezone:
        return True
    return (before.start, before.end, before.is_all_day) != (after.start, after.end, after.is_all_day)


def has_moved(before: EventComponent, after: EventComponent) -> bool:
    """Return whether earlier replies no longer count (RFC 5546 section 2.1.4)."""
    return has_new_times(before, after) or not keeps_instances(before, after)


def is_news(before: EventComponent, after: EventComponent) -> bool:
    """Return whether something changed that all guests' calendars show."""
    return (
        has_new_times(before, after)
        or before.rrule != after.rrule
        or (before.name, before.description, before.location, before.meeting_url)
        != (after.name, after.description, after.location, after.meeting_url)
    )


def revise(before: EventComponent, after: EventComponent, *, above: int) -> EventComponent:
    """Return `after` with the SEQUENCE that the change needs.

    New times set all replies back to `needs_action`. `above` is the highest SEQUENCE that was sent about the event,
    its series and its instances: guests' calendars order mails by it, and must not take this change for an older one.
    This includes guests who are invited again.
    """
    if before.is_cancelled or before == after:
        return replace(after, sequence=before.sequence)
    grows = after.is_cancelled or is_news(before, after) or _keys(before.attendees) != _keys(after.attendees)
    sequence = max(before.sequence, above) + 1 if grows else before.sequence
    attendees = after.attendees
    if has_moved(before, after):
        # A reply to an older SEQUENCE is about the old time.
        attendees = tuple(ask_again(one, sequence) for one in attendees)
    return replace(after, sequence=sequence, attendees=attendees)


def ask_again(one: Attendee, sequence: int) -> Attendee:
    """Return the attendee without a reply; replies to a lower SEQUENCE are stale from now on."""
    return replace(
        one, response_status="needs_action", sequence=sequence, replied_at=None, has_own_reply=False
    )


def plan_mails(
    before: EventComponent | None, after: EventComponent, *, organizer_emails: Sequence[str], now: datetime
) -> list[PlannedMail]:
    """Return the mails of one component's change; `before` is None for a new event.

    Added guests get a REQUEST, removed ones a CANCEL. A visible change is a REQUEST to all, a cancellation a CANCEL to
    all. The organizer's own addresses get no mail, and events that are over cause none.
    """

    def others(people: Sequence[Attendee]) -> tuple[Attendee, ...]:
        return _except(people, organizer_emails)

    if before is not None and before.is_cancelled:
        before = None
    if after.is_cancelled:
        if before is None or _is_over(before, now):
            return []
        people = others(before.attendees)
        return _mails("CANCEL", after, people, people)
    if _is_over(after, now) and (before is None or _is_over(before, now)):
        return []
    if before is None:
        return _mails("REQUEST", after, others(after.attendees), after.attendees)
    removed = without(before.attendees, after.attendees)
    asked = after.attendees if is_news(before, after) else without(after.attendees, before.attendees)
    return [
        *_mails("CANCEL", after, others(removed), after.attendees),
        *_mails("REQUEST", after, others(asked), after.attendees),
    ]


def plan_series(
    before: EventComponent,
    after: EventComponent,
    instances: Sequence[tuple[EventComponent, EventComponent]],
    *,
    mailed: Mapping[str, Mapping[str, datetime]],
    unchanged: Callable[[datetime], EventComponent | None],
    organizer_emails: Sequence[str],
    now: datetime,
) -> list[PlannedMail]:
    """Return the mails of a change of a series or single event: its own, then those of its instances.

    `instances` are the changed instances, before and after. `mailed`: by folded address and recurrence key, the
    original starts of the instances about which this guest had a mail. `unchanged`: returns the instance of an original
    start as the series has it, or None. Guests who are removed from the series get one CANCEL, for its instances too.
    """
    own = [
        replace(mail, excluded=(), overrides=())
        for mail in plan_mails(before, after, organizer_emails=organizer_emails, now=now)
    ]
    reached = [one for mail in own if mail.method == "REQUEST" for one in mail.recipients]
    reached_keys = _keys(reached)
    in_series = _keys(after.attendees)
    listed = {new.recurrence_key: _keys(new.attendees) for _, new in instances}
    plan: list[tuple[EventComponent, list[Attendee]]] = []
    for old, new in instances:
        if new.is_cancelled or _is_instance_over(new, after, now):
            continue
        has_changes = not is_unchanged(new, after)
        has_news = is_news(old, new)
        people = []
        for one in _except(new.attendees, organizer_emails):
            key = fold_address(one.email)
            if key in reached_keys:
                again = has_changes or one.has_own_reply or new.recurrence_key in mailed.get(key, {})
            else:
                again = has_news and key not in in_series
            if again:
                people.append(one)
        plan.append((new, people))
    # Instances that were changed before and are like the series now: some calendars keep the earlier change.
    known = {new.recurrence_key for _, new in instances}
    once: dict[datetime, list[Attendee]] = defaultdict(list)
    for one in reached:
        for recurrence_key, at in mailed.get(fold_address(one.email), {}).items():
            if recurrence_key not in known and at + after.length > now:
                once[at].append(one)
    for at, people in once.items():
        instance = unchanged(at)
        if instance is not None:
            plan.append((instance, people))
    plan = [
        (replace(component, sequence=max(component.sequence, after.sequence + 1)), people)
        for component, people in plan
        if people
    ]
    plan.sort(key=lambda planned: planned[0].start)
    per_guest = Counter(fold_address(one.email) for _, people in plan for one in people)
    is_too_much = (
        max(per_guest.values(), default=0) > MOST_REPEATED or per_guest.total() > MOST_REPEATED_MAILS
    )
    within: dict[str, list[EventComponent]] = defaultdict(list)
    mails: list[PlannedMail] = []
    for component, people in plan:
        alone = (
            [one for one in people if fold_address(one.email) not in reached_keys] if is_too_much else people
        )
        mails += _mails("REQUEST", component, tuple(alone), component.attendees)
        for one in people if is_too_much else ():
            if fold_address(one.email) in reached_keys:
                within[fold_address(one.email)].append(component)
    groups: dict[tuple[tuple[datetime, ...], tuple[str, ...]], list[Attendee]] = defaultdict(list)
    for one in reached:
        key = fold_address(one.email)
        excluded = tuple(
            sorted(
                new.recurrence_id
                for _, new in instances
                if new.recurrence_id is not None
                and (new.is_cancelled or key not in listed[new.recurrence_key])
            )
        )
        groups[
            excluded, tuple(component.recurrence_key for component in within[key][:MOST_IN_ONE_MAIL])
        ].append(one)
    by_key = {component.recurrence_key: component for component, _ in plan}
    requests = [
        PlannedMail(
            method="REQUEST",
            component=after,
            recipients=tuple(people),
            guests=after.attendees,
            excluded=excluded,
            overrides=_shortened([by_key[recurrence_key] for recurrence_key in keys]),
        )
        for (excluded, keys), people in groups.items()
    ]
    return [*(mail for mail in own if mail.method == "CANCEL"), *requests, *mails]


def without_recipients_of_series(
    mails: Iterable[PlannedMail], series_mails: Iterable[PlannedMail]
) -> list[PlannedMail]:
    """Return an instance's mails without the guests who get its series, which brings the instance with it."""
    reached = [one for mail in series_mails if not mail.component.recurrence_key for one in mail.recipients]
    left = (replace(mail, recipients=without(mail.recipients, reached)) for mail in mails)
    return [mail for mail in left if mail.recipients]


def plan_dropped(
    instances: Iterable[EventComponent],
    reached: Sequence[Attendee],
    *,
    above: int,
    organizer_emails: Sequence[str],
    now: datetime,
) -> list[PlannedMail]:
    """Return CANCELs to guests of changed instances that a change of the series drops.

    `reached` are the guests who get the series' own mail.
    """
    mails = []
    for component in instances:
        if component.is_cancelled or component.end <= now:
            continue
        people = _except(without(component.attendees, reached), organizer_emails)
        off = revise(component, replace(component, is_cancelled=True), above=above)
        mails += _mails("CANCEL", off, people, people)
    return mails


def _shortened(components: Sequence[EventComponent]) -> tuple[EventComponent, ...]:
    """Return the components with descriptions that fit into one mail."""
    if sum(len(component.description or "") for component in components) <= _MOST_DESCRIPTION:
        return tuple(components)
    most = _MOST_DESCRIPTION // len(components)
    return tuple(
        replace(component, description=f"{component.description[:most]}…")
        if component.description is not None and len(component.description) > most
        else component
        for component in components
    )


def _is_over(component: EventComponent, now: datetime) -> bool:
    ends_at = last_end(component)
    return ends_at is not None and ends_at <= now


def _is_instance_over(component: EventComponent, series: EventComponent, now: datetime) -> bool:
    """Return whether the instance is over, and would be over at its original time too."""
    assert component.recurrence_id is not None
    return max(component.end, component.recurrence_id + series.length) <= now


def _mails(
    method: Literal["REQUEST", "CANCEL"],
    component: EventComponent,
    recipients: tuple[Attendee, ...],
    guests: tuple[Attendee, ...],
) -> list[PlannedMail]:
    return (
        [PlannedMail(method=method, component=component, recipients=recipients, guests=guests)]
        if recipients
        else []
    )


def _keys(people: Iterable[Attendee]) -> set[str]:
    return {fold_address(one.email) for one in people}


def _except(people: Sequence[Attendee], addresses: Sequence[str]) -> tuple[Attendee, ...]:
    keys = {fold_address(email) for email in addresses}
    return tuple(one for one in people if fold_address(one.email) not in keys)


def without(people: Sequence[Attendee], others: Sequence[Attendee]) -> tuple[Attendee, ...]:
    """Return `people` except those whose address is in `others`."""
    return _except(people, [one.email for one in others])
