"""Pure: who is told what of a change (contract/messages.md, RFC 5546), and how a change raises SEQUENCE.

Two kinds of calendars must end with what the API shows: those that apply a series' REQUEST to the series alone and keep
the instances that they know, and those that take it as the whole set and forget them (sabre, Outlook). So whoever gets
a series' REQUEST is told its changed instances again, with a higher SEQUENCE, and finds those that he does not have
in EXDATE.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from app.core.addresses import fold_address
from app.hosted.components import Attendee, EventComponent, is_plain
from app.hosted.expand import keeps_instances, last_end

# Of instances that are told again. Each has a mail of its own, since Outlook reads the first event of an object only
# (nextcloud/calendar#4727). With more than that they are all in the series' mail.
MOST_RETOLD = 10  # to one guest
MOST_RETOLD_MAILS = 500  # to all
# The soonest ones; about 60 kB.
MOST_IN_ONE_MAIL = 100
_MOST_DESCRIPTION = 100_000  # characters, of all instances in one mail


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMail:
    """One kind of mail of one component. `guests` are those that the mail's calendar object lists.

    Of a series: `excluded` are the original starts of the instances that these recipients do not have; `overrides`
    changed instances in the same mail.
    """

    method: Literal["REQUEST", "CANCEL"]
    component: EventComponent
    recipients: tuple[Attendee, ...]
    guests: tuple[Attendee, ...]
    excluded: tuple[datetime, ...] = ()
    overrides: tuple[EventComponent, ...] = ()


def has_new_times(before: EventComponent, after: EventComponent) -> bool:
    """Whether its instances are others than before, save that a rule may have more or fewer of them."""
    if (before.rrule is None) != (after.rrule is None):
        return True
    if before.rrule is not None and before.timezone != after.timezone:
        return True
    return (before.start, before.end, before.is_all_day) != (after.start, after.end, after.is_all_day)


def has_moved(before: EventComponent, after: EventComponent) -> bool:
    """Whether former answers no longer count: RFC 5546 2.1.4."""
    return has_new_times(before, after) or not keeps_instances(before, after)


def is_news(before: EventComponent, after: EventComponent) -> bool:
    """Whether all guests' calendars show something that is not so any more."""
    return (
        has_new_times(before, after)
        or before.rrule != after.rrule
        or (before.name, before.description, before.location, before.meeting_url)
        != (after.name, after.description, after.location, after.meeting_url)
    )


def revise(before: EventComponent, after: EventComponent, *, above: int) -> EventComponent:
    """`after` with the SEQUENCE that the change asks for; where the time changed, everybody is asked again.

    `above` is the highest SEQUENCE that was told of the event, its series and its instances: whoever orders mails by
    it must not take this change for an older one. So whoever was called off and is invited again is told more, too.
    """
    if before.is_cancelled or before == after:
        return replace(after, sequence=before.sequence)
    grows = after.is_cancelled or is_news(before, after) or _keys(before.attendees) != _keys(after.attendees)
    sequence = max(before.sequence, above) + 1 if grows else before.sequence
    attendees = after.attendees
    if has_moved(before, after):
        # A reply to an older SEQUENCE is about the old time, so it is stale.
        attendees = tuple(ask_again(one, sequence) for one in attendees)
    return replace(after, sequence=sequence, attendees=attendees)


def ask_again(one: Attendee, sequence: int) -> Attendee:
    return replace(
        one, response_status="needs_action", sequence=sequence, replied_at=None, has_own_answer=False
    )


def plan_mails(
    before: EventComponent | None, after: EventComponent, *, organizer_emails: Sequence[str], now: datetime
) -> list[PlannedMail]:
    """The mails of one component's change; `before` is None for a new event. Nobody invites himself.

    Added: REQUEST. Removed: CANCEL. Visible change: REQUEST to all. Cancelled: CANCEL to all. Of what is over: nothing.
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
    told = after.attendees if is_news(before, after) else without(after.attendees, before.attendees)
    return [
        *_mails("CANCEL", after, others(removed), after.attendees),
        *_mails("REQUEST", after, others(told), after.attendees),
    ]


def plan_series(
    before: EventComponent,
    after: EventComponent,
    instances: Sequence[tuple[EventComponent, EventComponent]],
    *,
    told: Mapping[str, AbstractSet[datetime]],
    plain: Callable[[datetime], EventComponent | None],
    organizer_emails: Sequence[str],
    now: datetime,
) -> list[PlannedMail]:
    """The mails of a series' change: its own, then those of its instances. It is as good for a single event.

    `instances` are the components of instances, before and after. `told`: by folded address, the original starts of the
    instances that this guest had a mail of their own about. `plain`: the instance of that original start as the
    series has it, or None.
    Those who leave the series leave its instances with the same CANCEL.
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
        has_changes = not is_plain(new, after)
        has_news = is_news(old, new)
        people = []
        for one in _except(new.attendees, organizer_emails):
            key = fold_address(one.email)
            if key in reached_keys:
                again = has_changes or one.has_own_answer or new.recurrence_id in told.get(key, ())
            else:
                again = has_news and key not in in_series
            if again:
                people.append(one)
        plan.append((new, people))
    # Instances that were changed once and are as the series is by now: some calendars keep what they know of them.
    known = {new.recurrence_id for _, new in instances}
    once: dict[datetime, list[Attendee]] = defaultdict(list)
    for one in reached:
        for at in told.get(fold_address(one.email), ()):
            if at not in known and at + after.length > now:
                once[at].append(one)
    for at, people in once.items():
        instance = plain(at)
        if instance is not None:
            plan.append((instance, people))
    plan = [
        (replace(component, sequence=max(component.sequence, after.sequence + 1)), people)
        for component, people in plan
        if people
    ]
    plan.sort(key=lambda told_again: told_again[0].start)
    per_guest = Counter(fold_address(one.email) for _, people in plan for one in people)
    is_too_much = max(per_guest.values(), default=0) > MOST_RETOLD or per_guest.total() > MOST_RETOLD_MAILS
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


def told_beside(mails: Iterable[PlannedMail], again: Iterable[PlannedMail]) -> list[PlannedMail]:
    """An instance's mails, to those alone who do not get its series `again`, which tells them all."""
    reached = [one for mail in again if not mail.component.recurrence_key for one in mail.recipients]
    left = (replace(mail, recipients=without(mail.recipients, reached)) for mail in mails)
    return [mail for mail in left if mail.recipients]


def plan_dropped(
    instances: Iterable[EventComponent],
    told: Sequence[Attendee],
    *,
    above: int,
    organizer_emails: Sequence[str],
    now: datetime,
) -> list[PlannedMail]:
    """CANCELs for those who were invited to changed instances alone, when these go with their series.

    `told` are the guests who get the series' own mail.
    """
    mails = []
    for component in instances:
        if component.is_cancelled or component.end <= now:
            continue
        people = _except(without(component.attendees, told), organizer_emails)
        off = revise(component, replace(component, is_cancelled=True), above=above)
        mails += _mails("CANCEL", off, people, people)
    return mails


def _shortened(components: Sequence[EventComponent]) -> tuple[EventComponent, ...]:
    """With descriptions that fit into one mail."""
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
    """Whether it is over, and would be as a part of the series too."""
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
    """`people`, but nobody of `others`; by address."""
    return _except(people, [one.email for one in others])
