"""Which of the due calendars are synced next, so that no project, mailbox or feed host holds up the others.

A project may hold slots up to three times those that are left free (Choudhury and Hahne's dynamic thresholds, known
from packet switches): alone it has most of a worker's slots, several that have much to do share them, and one slot is
kept for whoever has nothing under way. Among the projects that may, the one with the fewest under way is
next; within a project, the calendar that is due longest.

Slots are counted for each worker by itself. Only a mailbox is counted over all workers, since its limit is the
provider's (app/sync/repository.py).
"""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Kind = Literal["account", "feed"]

# Graph serves 4 requests of an application for a mailbox at once (docs/reference/microsoft.md, "Throttling"); one is
# left for the API.
MAILBOX_SYNCS = 3
_TIMES_THE_FREE = 3
# A host that hangs may hold this share of the slots.
_HOST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Due:
    """A calendar that could be synced now. `mailbox` is the same for all calendars of one account."""

    calendar_id: str
    project_id: str
    kind: Kind
    mailbox: str
    due_at: datetime


def pick_oldest(due: Iterable[Due], mailboxes: Counter[str], limit: int) -> list[Due]:
    """Up to `limit`, whosever they are. `mailboxes`: the syncs under way of each; those that are picked are added."""
    picked: list[Due] = []
    for one in sorted(due, key=lambda one: one.due_at):
        if len(picked) < limit and _has_room(one, mailboxes):
            mailboxes[one.mailbox] += 1
            picked.append(one)
    return picked


def _has_room(due: Due, mailboxes: Counter[str]) -> bool:
    return due.kind == "feed" or mailboxes[due.mailbox] < MAILBOX_SYNCS


class Turns:
    """What one worker has under way of one kind, in `slots` slots. `host_of` tells a feed's host where it is known."""

    def __init__(self, slots: int, host_of: Callable[[str], str | None] = lambda _: None) -> None:
        self._slots = slots
        self._host_of = host_of
        self._under_way: dict[str, str] = {}  # calendar -> project

    def begin(self, calendar_id: str, project_id: str) -> None:
        self._under_way[calendar_id] = project_id

    def end(self, calendar_id: str) -> None:
        self._under_way.pop(calendar_id, None)

    def pick(self, due: Iterable[Due], mailboxes: Counter[str], limit: int) -> list[Due]:
        """Up to `limit` that may begin now, of which `begin` is to be told; see `pick_oldest`."""
        waiting: dict[str, deque[Due]] = defaultdict(deque)
        for one in sorted(due, key=lambda one: one.due_at):
            waiting[one.project_id].append(one)
        projects = Counter(self._under_way.values())
        hosts = Counter(map(self._host_of, self._under_way))
        free = min(limit, self._slots - projects.total())
        line = [(projects[project_id], queue[0].due_at, project_id) for project_id, queue in waiting.items()]
        heapq.heapify(line)
        picked: list[Due] = []
        while free > 0 and line:
            count, _, project_id = heapq.heappop(line)
            if count and count >= _TIMES_THE_FREE * (free - 1):
                break  # whoever else is in line has at least as many
            queue = waiting[project_id]
            found = self._next(queue, mailboxes, hosts)
            if found is None:
                continue
            picked.append(found)
            mailboxes[found.mailbox] += 1
            hosts[self._host_of(found.calendar_id)] += 1
            free -= 1
            if queue:
                heapq.heappush(line, (count + 1, queue[0].due_at, project_id))
        return picked

    def _next(self, queue: deque[Due], mailboxes: Counter[str], hosts: Counter[str | None]) -> Due | None:
        most_of_host = max(1, int(self._slots * _HOST_SHARE))
        while queue:
            one = queue.popleft()
            host = self._host_of(one.calendar_id)
            if _has_room(one, mailboxes) and (host is None or hosts[host] < most_of_host):
                return one
        return None
