"""The choice of the due calendars that are synced next (pure).

No project, mailbox or host of feeds holds up the others.

Projects take turns (app/core/turns.py). A project may hold up to three times the slots that stay free: alone it has
most of a worker's slots, and one slot is kept for a project that has nothing under way. Within a project, the calendar
that has been due longest is next.

Slots are counted for each worker by itself. Only a mailbox is counted over all workers, because its limit is the
provider's (app/sync/repository.py).
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from app.core.turns import share_slots

Kind = Literal["account", "feed"]

# Graph serves 4 requests of an application for a mailbox at once; one is left for the API.
MAILBOX_SYNCS = 3
_TIMES_THE_FREE = 3
# The share of the slots that a host which does not respond may hold.
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
    """Pick up to `limit` calendars, longest due first, of any project.

    `mailboxes`: the syncs under way of each mailbox; those that are picked are added.
    """
    picked: list[Due] = []
    for one in sorted(due, key=lambda one: one.due_at):
        if len(picked) < limit and _has_room(one, mailboxes):
            mailboxes[one.mailbox] += 1
            picked.append(one)
    return picked


def _has_room(due: Due, mailboxes: Counter[str]) -> bool:
    return due.kind == "feed" or mailboxes[due.mailbox] < MAILBOX_SYNCS


class Turns:
    """The syncs of one kind that one worker has under way, in `slots` slots.

    `host_of`: the host of a feed by its calendar, where it is known.
    """

    def __init__(self, slots: int, host_of: Callable[[str], str | None] = lambda _: None) -> None:
        self._slots = slots
        self._host_of = host_of
        self._under_way: dict[str, str] = {}  # calendar -> project

    def begin(self, calendar_id: str, project_id: str) -> None:
        self._under_way[calendar_id] = project_id

    def end(self, calendar_id: str) -> None:
        self._under_way.pop(calendar_id, None)

    def pick(self, due: Iterable[Due], mailboxes: Counter[str], limit: int) -> list[Due]:
        """Pick up to `limit` calendars that may begin now, like `pick_oldest`; the caller calls `begin`."""
        projects = Counter(self._under_way.values())
        hosts = Counter(map(self._host_of, self._under_way))
        most_of_host = max(1, int(self._slots * _HOST_SHARE))

        def begins(one: Due) -> bool:
            """Whether its mailbox and its host have room; if so, it is counted with them."""
            host = self._host_of(one.calendar_id)
            if not _has_room(one, mailboxes) or (host is not None and hosts[host] >= most_of_host):
                return False
            mailboxes[one.mailbox] += 1
            hosts[host] += 1
            return True

        lines: dict[str, _Line] = {}
        for one in sorted(due, key=lambda one: one.due_at):
            lines.setdefault(one.project_id, _Line(begins)).queue.append(one)
        free = min(limit, self._slots - projects.total())
        return share_slots(lines, projects, free=free, limit=free, has_share=_has_share)


def _has_share(count: int, free: int) -> bool:
    return count == 0 or count < _TIMES_THE_FREE * (free - 1)


class _Line:
    """The due calendars of one project, longest due first."""

    def __init__(self, begins: Callable[[Due], bool]) -> None:
        self.queue: deque[Due] = deque()
        self._begins = begins

    @property
    def head(self) -> datetime | None:
        return self.queue[0].due_at if self.queue else None

    def take(self) -> Due | None:
        """The next calendar that may begin. Those before it are dropped, and wait for the next claim."""
        while self.queue:
            one = self.queue.popleft()
            if self._begins(one):
                return one
        return None
