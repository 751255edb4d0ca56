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
    changes: list[tuple[int, int, bool]] = []
    for participant, spans in enumerate(starts):
        for span in spans:
            first, last = grid.places_of(span)
            if first <= last:
                changes += [(first, participant, True), (last + 1, participant, False)]
    # Someone who is free again at the place where an earlier span ends is first taken out, and then put in.
    changes.sort(key=lambda change: (change[0], change[2]))
    free: set[int] = set()
    wanted = frozenset(required)
    for number, (place, participant, is_free) in enumerate(changes):
        if is_free:
            free.add(participant)
        else:
            free.discard(participant)
        following = changes[number + 1][0] if number + 1 < len(changes) else place
        if following > place and len(free) >= minimum and wanted <= free:
            who = sorted(free)
            for at in range(place, following):
                yield Slot(grid.at(at), who)
