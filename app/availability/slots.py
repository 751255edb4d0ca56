"""Slots: the times of a grid at which enough participants can start a meeting."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from app.availability.spans import DAY, MINUTE, Instant, Span


@dataclass(frozen=True, slots=True)
class Grid:
    """The times at which slots may start: multiples of an interval from each midnight in UTC.

    `step` in microseconds. It divides an hour or is whole hours, so that multiples from the full hour are among them.
    Places are the times' numbers, counted from 2000-01-01.
    """

    step: int

    @classmethod
    def of_minutes(cls, minutes: int) -> "Grid":
        return cls(minutes * MINUTE)

    @property
    def _per_day(self) -> int:
        return -(-DAY // self.step)

    def at(self, place: int) -> Instant:
        day, number = divmod(place, self._per_day)
        return day * DAY + number * self.step

    def places_of(self, span: Span) -> Span:
        """Return the first and the last place within a closed span.

        The first is after the last if there is none.
        """
        first, last = span
        day, rest = divmod(first, DAY)
        lower = day * self._per_day + -(-rest // self.step)
        day, rest = divmod(last, DAY)
        return lower, day * self._per_day + rest // self.step


@dataclass(frozen=True, slots=True)
class Slot:
    start: Instant
    free: list[int]


def find_slots(
    starts: Sequence[Sequence[Span]],
    grid: Grid,
    *,
    required: Collection[int],
    minimum: int,
) -> Iterator[Slot]:
    """Yield the slots in order: every required participant, and at least `minimum` of all, are free.

    `starts`: for each participant, the closed spans in which a meeting may start, sorted and disjoint. The cost is that
    of the spans' ends and of the slots that are asked for, however long the range is.
    """
    # Each change is one small integer: place, whether someone becomes free, who. Hundreds of thousands of them are
    # sorted in one step, during which no other thread runs. Someone who is free again at the place where an earlier
    # span ends is first taken out, and then put in.
    count = len(starts)
    base = min((grid.places_of(spans[0])[0] for spans in starts if spans), default=0)
    changes: list[int] = []
    for participant, spans in enumerate(starts):
        for span in spans:
            first, last = grid.places_of(span)
            if first <= last:
                changes.append((2 * (first - base) + 1) * count + participant)
                changes.append(2 * (last + 1 - base) * count + participant)
    changes.sort()
    free: set[int] = set()
    wanted = frozenset(required)
    following = iter([*changes[1:], changes[-1]] if changes else ())
    for change in changes:
        place, is_free = divmod(change // count, 2)
        if is_free:
            free.add(change % count)
        else:
            free.discard(change % count)
        until = next(following) // count // 2
        if until > place and len(free) >= minimum and wanted <= free:
            who = sorted(free)
            for at in range(place, until):
                yield Slot(grid.at(base + at), who)
