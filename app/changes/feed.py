"""The newest changes of a project in memory, for the clients that wait for them.

A feed has a channel for each scope that a client follows. A channel is a chain, and each follower holds the joint up to
which it has taken the changes. So what all have taken is freed by itself, and a change is in memory once.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.changes.places import Place, Scope
from app.changes.rendering import Change

# A follower that is further behind reads pages of its own.
_MAX_BYTES_BEHIND = 1_000_000
# What a follower takes at once stays in memory until it is sent.
_PIECE_BYTES = 262_144
# Where a client may still begin whose own page was read a moment ago.
_RECENT_JOINTS = 8
_RECENT_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Joint:
    """A place in a channel's chain, and the changes from there to the next one.

    - `until`: when the channel came here, the feed had reported all changes before this time.
    - `total`: the bytes of the channel's changes up to here.
    """

    until: datetime
    total: int
    made_at: float = field(default_factory=time.monotonic)
    changes: Sequence[Change] = ()
    next: "Joint | None" = None


class Follower:
    """A client that waits. `news` is set when there is something to take, or when it must end (`is_over`).

    It is also set at `comment_at`, on the clock of `time.monotonic`: one timer serves all streams.
    """

    def __init__(self, scope: Scope, key_id: str | None = None) -> None:
        self.scope = scope
        self.key_id = key_id
        self.news = asyncio.Event()
        self.is_over = False
        self.comment_at = math.inf
        self.channel: Channel | None = None
        self._at: Joint | None = None
        self._knows_until = datetime.max.replace(tzinfo=UTC)

    def begin(self, channel: "Channel", joint: Joint, knows_until: datetime) -> None:
        """Follow the channel from `joint` on. The client knows all changes before `knows_until`."""
        self.channel, self._at, self._knows_until = channel, joint, knows_until
        channel.followers.add(self)
        if joint.next is not None:
            self.news.set()

    def leave(self) -> None:
        if self.channel is not None:
            self.channel.followers.discard(self)
        self.channel = self._at = None

    def end(self) -> None:
        self.is_over = True
        self.news.set()

    def take(self, max_bytes: int = _PIECE_BYTES) -> list[Change] | None:
        """Take the changes that came; None if the client is too far behind and must read a page.

        It ends after about `max_bytes`. `news` stays set if there are more.
        """
        self.news.clear()
        if self._at is None:
            return None
        changes: list[Change] = []
        begin = self._at.total
        while self._at.next is not None:
            if self._at.total - begin >= max_bytes:
                self.news.set()
                break
            changes += [change for change in self._at.changes if change.place.at >= self._knows_until]
            self._at = self._at.next
        return changes

    def bytes_behind(self, total: int) -> int:
        return 0 if self._at is None else total - self._at.total

    def fall_behind(self) -> None:
        """Let go of the chain, which would stay in memory."""
        self._at = None


def _pieces(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    begin = size = 0
    for end, change in enumerate(changes, 1):
        size += len(change.event)
        if size >= _PIECE_BYTES:
            yield changes[begin:end]
            begin, size = end, 0
    if begin < len(changes):
        yield changes[begin:]


class Channel:
    """The changes of one scope."""

    def __init__(self, scope: Scope, until: datetime) -> None:
        self.scope = scope
        self.followers: set[Follower] = set()
        self.end = Joint(until, 0)
        self._recent = deque([self.end], maxlen=_RECENT_JOINTS)

    def find_joint(self, knows_until: datetime) -> Joint | None:
        """Return where a client that knows all changes before `knows_until` begins, to miss nothing."""
        return next((joint for joint in reversed(self._recent) if joint.until <= knows_until), None)

    def add(self, changes: Sequence[Change]) -> None:
        total = self.end.total
        for piece in _pieces(changes):
            joint = Joint(piece[-1].place.until, self.end.total + sum(len(change.event) for change in piece))
            self.end.changes, self.end.next = piece, joint
            self.end = joint
        self._recent.append(self.end)
        while self.end.total - self._recent[0].total > _MAX_BYTES_BEHIND:
            self._recent.popleft()
        for follower in self.followers:
            if follower.bytes_behind(total) > _MAX_BYTES_BEHIND:
                follower.fall_behind()
            follower.news.set()

    def forget_old(self) -> None:
        """Drop the joints at which no client begins any more."""
        oldest = time.monotonic() - _RECENT_SECONDS
        while len(self._recent) > 1 and self._recent[0].made_at < oldest:
            self._recent.popleft()


class Feed:
    """The changes of a project, in order, from the moment at which the first client began to wait.

    `place`: all changes before it were reported. `quiet_from`: no change lies between it and `place`.
    """

    def __init__(self, project_id: str, begin: datetime, quiet_from: Place) -> None:
        self.project_id = project_id
        self.place = Place(begin)
        self.quiet_from = quiet_from
        self.wake = asyncio.Event()
        self.wake.set()  # what was committed since `begin` may have been signalled already
        self.empty_since: float | None = None
        self._channels: dict[str | None, Channel] = {}

    @property
    def followers(self) -> list[Follower]:
        return [follower for channel in self._channels.values() for follower in channel.followers]

    def channel(self, scope: Scope) -> Channel:
        channel = self._channels.get(scope.calendar_id)
        if channel is None:
            channel = self._channels[scope.calendar_id] = Channel(scope, self.place.until)
        return channel

    def is_quiet_since(self, place: Place) -> bool:
        """Whether the project has had no change between this place and the feed's."""
        return place == self.quiet_from or self.quiet_from.at < place.at <= self.place.at

    def add(self, changes: Sequence[Change]) -> None:
        """Give the next changes of the project, in order, to all who follow them."""
        self.place = self.quiet_from = changes[-1].place
        for calendar_id, channel in self._channels.items():
            fitting = [change for change in changes if calendar_id in (None, change.calendar_id)]
            if fitting:
                channel.add(fitting)

    def move_to(self, at: datetime) -> None:
        """Note that there is no further change before this time."""
        self.place = Place(max(at, self.place.until))

    def forget_old(self) -> None:
        for calendar_id, channel in list(self._channels.items()):
            channel.forget_old()
            if not channel.followers:
                del self._channels[calendar_id]
        is_empty = not self._channels
        self.empty_since = (self.empty_since or time.monotonic()) if is_empty else None
