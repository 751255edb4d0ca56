"""Pure: which endpoints get a worker's free slots.

Two rules keep slots free for projects that have nothing under way:

- A project may hold four times as many slots as are free (app/core/turns.py). Of 64 slots one project alone gets 52, two
  get 28 each, and so on: the more projects are busy the fewer each has, and some slots are always free.
- Endpoints that fail or respond slowly have half of the slots together, shared by the same rule.

Among those that may have a slot, the project that holds the fewest is next, and in it the endpoint that was served
longest ago.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from app.core.turns import share_slots

_SHARE = 4
_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class ReadyEndpoint:
    """An endpoint with due deliveries.

    `room`: how many of them it may get now. `is_slow`: it fails or is slow.
    """

    id: str
    project_id: str
    room: int
    is_slow: bool


class Slots:
    """The slots of one worker, and the projects that hold them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._total_slow = max(1, total // 2)
        self._held: Counter[str] = Counter()
        self._held_slow: Counter[str] = Counter()
        self._served: dict[str, int] = {}
        self._serving = 0

    @property
    def full_projects(self) -> list[str]:
        """Projects that may have no further slot now."""
        return _at_their_limit(self._held, self._total)

    @property
    def projects_full_of_slow(self) -> list[str]:
        """Projects whose slow endpoints may have no further slot now."""
        return _at_their_limit(self._held_slow, self._total_slow)

    @property
    def is_full_of_slow(self) -> bool:
        return self._held_slow.total() >= self._total_slow

    def share_out(self, endpoints: Iterable[ReadyEndpoint], limit: int) -> dict[str, int]:
        """Return how many slots each endpoint gets, `limit` at most altogether.

        `take` then makes it hold them.
        """
        held, held_slow = Counter(self._held), Counter(self._held_slow)
        free_slow = self._total_slow - held_slow.total()
        given: Counter[str] = Counter()
        lines: dict[str, _Line] = {}

        def give(endpoint: ReadyEndpoint) -> bool:
            """Give the endpoint a slot if it is not slow, or its project has a share of those for slow endpoints."""
            nonlocal free_slow
            if endpoint.is_slow:
                if not _has_share(held_slow[endpoint.project_id], free_slow):
                    return False
                held_slow[endpoint.project_id] += 1
                free_slow -= 1
            given[endpoint.id] += 1
            self._note_served(endpoint.id)
            if given[endpoint.id] < endpoint.room:
                lines[endpoint.project_id].add(endpoint, self._serving)
            return True

        for endpoint in endpoints:
            line = lines.setdefault(endpoint.project_id, _Line(give))
            line.add(endpoint, self._served.get(endpoint.id, 0))
        share_slots(lines, held, free=self._total - held.total(), limit=limit, has_share=_has_share)
        return dict(given)

    def take(self, project_id: str, *, is_slow: bool) -> None:
        self._held[project_id] += 1
        if is_slow:
            self._held_slow[project_id] += 1

    def give_back(self, project_id: str, *, is_slow: bool) -> None:
        _decrement(self._held, project_id)
        if is_slow:
            _decrement(self._held_slow, project_id)

    def _note_served(self, endpoint_id: str) -> None:
        self._serving += 1
        self._served.pop(endpoint_id, None)
        self._served[endpoint_id] = self._serving
        if len(self._served) > _REMEMBERED:
            del self._served[next(iter(self._served))]


class _Line:
    """The ready endpoints of one project, the one that was served longest ago first."""

    def __init__(self, give: Callable[[ReadyEndpoint], bool]) -> None:
        self._give = give
        self._queue: list[tuple[int, str, ReadyEndpoint]] = []

    def add(self, endpoint: ReadyEndpoint, served: int) -> None:
        heapq.heappush(self._queue, (served, endpoint.id, endpoint))

    @property
    def head(self) -> tuple[int, str] | None:
        return self._queue[0][:2] if self._queue else None

    def take(self) -> ReadyEndpoint | None:
        """Give the next endpoint a slot; None if it may not have one, and then it leaves the line."""
        *_, endpoint = heapq.heappop(self._queue)
        return endpoint if self._give(endpoint) else None


def _has_share(count: int, free: int) -> bool:
    return count < _SHARE * free


def _at_their_limit(held: Counter[str], total: int) -> list[str]:
    free = total - held.total()
    return [project for project, count in held.items() if not _has_share(count, free)]


def _decrement(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
