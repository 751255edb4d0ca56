"""Pure: which bots follow from the decisions about events.

A bot is *waiting* while it can still be changed or deleted, *busy* while a call to the runner is in progress, and *done*
once the runner has it or it has failed. A done bot stands for the start that it was handed over for, its `join_at`: an
event that starts then gets no second one, and an event that was moved gets a successor.

With `bot_scope` "meeting", events with the same link and overlapping times (to touch is not to overlap) share a bot. They
are taken in the order of start and id: an event gets the bot unless an earlier one that overlaps it has one. So two such
bots never overlap, and an event that is not chosen changes nothing.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.bots.lifecycle import USUAL_LENGTH, is_over
from app.bots.rule_bot import Phase
from app.join_rules.judge import Rule, RuleBot

# A longer event shares its bot only with events of its first day.
LONGEST = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bot:
    """A bot that a rule made."""

    id: str
    event_id: str
    phase: Phase
    join_at: datetime
    meeting_url: str | None
    rule: str
    digest: str


@dataclass(slots=True, kw_only=True)
class Judged:
    """An event with what was decided. Only events that can have a bot have a `bot`.

    `is_shared`: the bot is one for the meeting. `is_marked`: a client deleted its bot. `is_written`: by this transaction;
    then it may also get a bot after its start.
    """

    id: str
    start: datetime
    end: datetime | None
    meeting_url: str | None
    rule: Rule | None
    bot: RuleBot | None
    is_shared: bool = False
    is_marked: bool = False
    is_written: bool = False

    @property
    def until(self) -> datetime:
        """The end of the time for which it shares a bot."""
        end = self.end if self.end is not None and self.end > self.start else self.start + USUAL_LENGTH
        return min(end, self.start + LONGEST)

    def overlaps(self, other: "Judged") -> bool:
        return self.start < other.until and other.start < self.until

    def is_on_at(self, at: datetime) -> bool:
        return self.start <= at < self.until


@dataclass(frozen=True, slots=True)
class Deleted:
    """A meeting whose bot a client deleted."""

    meeting_url: str | None
    join_at: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. `keep`: waiting bots with the event that each is for, and what its rule says."""

    make: list[Judged] = field(default_factory=list)
    keep: list[tuple[Bot, Judged]] = field(default_factory=list)
    delete: list[Bot] = field(default_factory=list)


def plan(events: Iterable[Judged], bots: Iterable[Bot], deleted: Collection[Deleted], now: datetime) -> Plan:
    """Return what makes the bots match the decisions.

    All events of each meeting, and all their bots, are given.
    """
    result = Plan()
    of_event: dict[str, list[Bot]] = defaultdict(list)
    for bot in sorted(bots, key=lambda bot: bot.id):
        of_event[bot.event_id].append(bot)
    shared: dict[str, list[Judged]] = defaultdict(list)
    for event in events:
        if event.bot is None:
            continue
        if event.is_shared:
            assert event.meeting_url is not None
            shared[event.meeting_url].append(event)
        else:
            _plan_event(event, of_event.pop(event.id, []), result, now)
    _plan_meetings(shared, of_event, deleted, result, now)
    taken = {bot.id for bot, _ in result.keep} | {bot.id for bot in result.delete}
    rest = [bot for some in of_event.values() for bot in some if bot.phase == "waiting"]
    result.delete.extend(bot for bot in rest if bot.id not in taken)
    return result


def _plan_event(event: Judged, own: Sequence[Bot], result: Plan, now: datetime) -> None:
    waiting = [bot for bot in own if bot.phase == "waiting"]
    if event.is_marked or _has_its_bot(event, own):
        result.delete.extend(waiting)
        return
    result.delete.extend(waiting[1:])
    if waiting:
        result.keep.append((waiting[0], event))
    elif not _may_come_back(own) and may_make(event, now):
        result.make.append(event)


def _has_its_bot(event: Judged, own: Sequence[Bot]) -> bool:
    """Whether a bot was handed over for this start, or is being handed over for it."""
    return any(bot.phase != "waiting" and bot.join_at == event.start for bot in own)


def _may_come_back(own: Sequence[Bot]) -> bool:
    """Whether a bot is being handed over for another start.

    If the runner does not take it, it follows its event.
    """
    return any(bot.phase == "busy" for bot in own)


def may_make(event: Judged, now: datetime) -> bool:
    """Whether an event may still get a bot: until its start; until its end, if just written."""
    return event.start > now or (event.is_written and not is_over(event.start, event.end, now))


def _plan_meetings(
    shared: Mapping[str, Sequence[Judged]],
    of_event: Mapping[str, Sequence[Bot]],
    deleted: Collection[Deleted],
    result: Plan,
    now: datetime,
) -> None:
    """Plan the bots of events that share them. `shared`: the events by link."""
    if not shared:
        return
    chosen = {link: _choose(events, of_event, now) for link, events in shared.items()}
    chosen_ids = {event.id for events in chosen.values() for event in events if not event.is_marked}
    by_link: dict[str | None, list[Bot]] = defaultdict(list)
    for bot in sorted((bot for some in of_event.values() for bot in some), key=lambda bot: bot.id):
        by_link[bot.meeting_url].append(bot)
    unwanted_by_link: dict[str | None, list[Deleted]] = defaultdict(list)
    for one in deleted:
        unwanted_by_link[one.meeting_url].append(one)
    taken: set[str] = set()
    for link, events in chosen.items():
        times = {event.id: event for event in shared[link]}
        unwanted = unwanted_by_link.get(link, [])
        for event in events:
            if event.is_marked:
                continue
            own = of_event.get(event.id, ())
            if _is_covered(event, own, by_link[link], unwanted):
                continue
            waiting = next((bot for bot in own if bot.phase == "waiting"), None)
            if waiting is None:
                free = (
                    bot
                    for bot in by_link[link]
                    if bot.phase == "waiting" and bot.id not in taken and bot.event_id not in chosen_ids
                )
                waiting = next((bot for bot in free if _is_for(bot, event, times)), None)
            if waiting is not None:
                taken.add(waiting.id)
                result.keep.append((waiting, event))
            elif not _may_come_back(own) and may_make(event, now):
                result.make.append(event)


def _choose(events: Sequence[Judged], of_event: Mapping[str, Sequence[Bot]], now: datetime) -> list[Judged]:
    """Choose the events of a link that get a bot; a marked one keeps the others of its meeting from it."""
    counting = [event for event in events if may_make(event, now) or of_event.get(event.id)]
    counting.sort(key=lambda event: (event.start, event.id))
    marked: list[Judged] = []
    others: list[Judged] = []
    for event in counting:
        if event.is_marked and not (marked and event.overlaps(marked[-1])):
            marked.append(event)
    starts = [event.start for event in marked]
    for event in counting:
        # The chosen ones do not overlap each other: of each kind, only the last one to start can overlap.
        before = bisect_left(starts, event.until)
        is_taken = before > 0 and event.overlaps(marked[before - 1])
        if not event.is_marked and not is_taken and not (others and event.overlaps(others[-1])):
            others.append(event)
    return marked + others


def _is_covered(
    event: Judged, own: Sequence[Bot], of_link: Sequence[Bot], deleted: Sequence[Deleted]
) -> bool:
    """Whether a bot that cannot be changed any more is in its meeting, or a client wants none there.

    A bot that left for the event itself at another start is no reason: the event has a successor.
    """
    if _has_its_bot(event, own) or any(event.is_on_at(one.join_at) for one in deleted):
        return True
    others = (bot for bot in of_link if bot.phase != "waiting" and bot.event_id != event.id)
    return any(event.is_on_at(bot.join_at) for bot in others)


def _is_for(bot: Bot, event: Judged, times: Mapping[str, Judged]) -> bool:
    """Whether a bot of another event of the same link is for this meeting."""
    other = times.get(bot.event_id)
    return event.is_on_at(bot.join_at) or (other is not None and other.overlaps(event))
