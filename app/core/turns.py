"""Fair turns: which waiting work gets the free slots of a worker (pure).

Work waits in lines, one for each group, such as a project. The group that holds the fewest slots is next; of equal
ones, the group whose next work comes first. A share limits how many slots a group may hold, in terms of the slots that
are left free: a group alone gets most slots, several busy groups share them, and some slots stay free for a group that
has nothing under way (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Line(Protocol[T_co]):
    """The waiting work of one group."""

    @property
    def head(self) -> Any | None:
        """A key that orders the next work among all lines; None if no work is left."""

    def take(self) -> T_co | None:
        """Remove the next work from the line, and return it; None if it may not have a slot now."""


def share_slots(
    lines: Mapping[str, Line[T]],
    held: Counter[str],
    *,
    free: int,
    limit: int,
    has_share: Callable[[int, int], bool],
) -> list[T]:
    """Take work from the lines for up to `limit` of the `free` slots, in turns.

    `held`: the slots that each group holds; those that are given are added. `has_share(count, free)`: whether a group
    with `count` slots may have another one while `free` are left. It must be false for every larger count, too.
    """
    turns = [(held[group], line.head, group) for group, line in lines.items() if line.head is not None]
    heapq.heapify(turns)
    taken: list[T] = []
    while turns and free > 0 and len(taken) < limit:
        count, _, group = heapq.heappop(turns)
        if not has_share(count, free):
            break  # every other group has at least as many slots
        line = lines[group]
        work = line.take()
        if work is not None:
            taken.append(work)
            held[group] += 1
            free -= 1
        if line.head is not None:
            heapq.heappush(turns, (held[group], line.head, group))
    return taken
