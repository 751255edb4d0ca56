"""The one reader of changes for all waiting clients of a process.

Why: docs/adr/0008-waiting-for-changes.md. A waiting client costs no query and no database connection. The hub reads the changes of a project when Redis
notifies it, and looks by itself every 0.2 s, because Redis may lose messages.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from app.calendar_events import service as calendar_events
from app.calendars.service import find_existing
from app.changes.errors import TooManyWaiting
from app.changes.feed import Feed, Follower
from app.changes.places import Place, Scope
from app.changes.rendering import read_change
from app.core import metrics
from app.core.db import Sessions, reading
from app.core.listener import Listener
from app.core.wakeups import CHANGES_CHANNEL
from app.events.visibility import load_horizon
from app.projects.service import find_live_key_ids

# A project may have as many as there is room left for: 1,500 alone, and the next one half of the rest.
MAX_WAITING = 3_000

_PAGE = 100
_PAGES_AT_ONCE = 4  # then it is another project's turn
_CONNECTIONS = 2
_CATCH_UP_CONNECTIONS = 4
_LOOK_SECONDS = 0.2
_LOOK_SHARE = 0.05  # of the time, at most
_PAUSE_SECONDS = 0.01
_HELD_BACK_SECONDS = (0.02, 0.2)
_RETRY_SECONDS = 1.0
_CHECK_SECONDS = 15.0
_COMMENTS_SECONDS = 0.5
_KEEP_EMPTY_SECONDS = 5.0
_END_SECONDS = 5.0

_Result = TypeVar("_Result")

_ALL = datetime.min.replace(tzinfo=UTC)

log = structlog.get_logger()


class Hub:
    """Gives changes to waiting clients. One per process; `aclose` ends it."""

    def __init__(self, read_sessions: Sessions, redis_url: str) -> None:
        self._read_sessions = read_sessions
        self._feeds: dict[str, Feed] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._followers: set[Follower] = set()
        self._waiting: Counter[str] = Counter()
        self._reads = asyncio.Semaphore(_CONNECTIONS)
        self._listener = Listener(redis_url, CHANGES_CHANNEL, received=self._wake, connected=self._wake_all)
        self._is_closing = False
        self.catching_up = asyncio.Semaphore(_CATCH_UP_CONNECTIONS)

    # -- for the service ------------------------------------------------------------------------------------

    @contextmanager
    def follower(self, scope: Scope, *, kind: str, key_id: str) -> Iterator[Follower]:
        """Count a client as waiting while the block runs. Raises TooManyWaiting.

        `kind` is a label of the metric.
        """
        self._check_room(scope)
        follower = Follower(scope, key_id)
        project_id = scope.project_id
        self._waiting[project_id] += 1
        self._followers.add(follower)
        if self._is_closing:
            follower.end()
        try:
            with metrics.WAITING_FOR_CHANGES.labels(kind).track_inprogress():
                yield follower
        finally:
            follower.leave()
            self._followers.discard(follower)
            self._waiting[project_id] -= 1
            if not self._waiting[project_id]:
                del self._waiting[project_id]

    def _check_room(self, scope: Scope) -> None:
        """Raises TooManyWaiting if no further client of the project may wait."""
        waiting = self._waiting[scope.project_id]
        if waiting >= MAX_WAITING - len(self._followers):
            raise TooManyWaiting(
                f"{waiting} clients of this project wait already, and there is no room for more. "
                "Close some, or poll without wait."
            )

    def join(self, follower: Follower, place: Place, knows_until: datetime) -> bool:
        """Let a client follow that knows all changes before `knows_until`, which is a horizon.

        None of them is behind `place`.

        Returns False if some that it does not know were reported already: then it has to read a page again.
        """
        scope = follower.scope
        feed = self._feeds.get(scope.project_id)
        if feed is None:
            # A place of the future, which a client can make up, must not become the feed's.
            is_quiet = scope.calendar_id is None and place.until <= knows_until
            quiet_from = place if is_quiet else Place(knows_until)
            feed = self._feeds[scope.project_id] = Feed(scope.project_id, knows_until, quiet_from)
            self._start(scope.project_id, self._follow(feed))
        self._start("listener", self._listener.run())
        self._start("look", self._repeat(self._look))
        self._start("check", self._repeat(self._check))
        self._start("comments", self._repeat(self._call_for_comments))
        channel = feed.channel(scope)
        knows_until = max(knows_until, place.until)
        joint = channel.find_joint(knows_until)
        if joint is None:
            return False
        follower.begin(channel, joint, knows_until)
        return True

    def join_at_edge(self, follower: Follower, place: Place) -> bool:
        """Let a client follow from `place` without a page of its own, if nothing changed since there."""
        feed = self._feeds.get(follower.scope.project_id)
        if feed is None or not feed.is_quiet_since(place):
            return False
        channel = feed.channel(follower.scope)
        follower.begin(channel, channel.end, _ALL)
        return True

    def close(self) -> None:
        """End all waiting clients, and those to come: the process ends."""
        self._is_closing = True
        for follower in list(self._followers):
            follower.end()

    async def aclose(self) -> None:
        self.close()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    # -- reading --------------------------------------------------------------------------------------------

    def _start(self, name: str, running: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.get(name)
        if task is None or task.done():
            self._tasks[name] = asyncio.create_task(running, context=Context())  # not of the request
        else:
            running.close()

    def _wake(self, project_id: str) -> None:
        feed = self._feeds.get(project_id)
        if feed is not None:
            feed.wake.set()

    def _wake_all(self) -> None:
        for feed in self._feeds.values():
            feed.wake.set()

    async def _follow(self, feed: Feed) -> None:
        """Read the changes of a project whenever it is woken."""
        again_after = _HELD_BACK_SECONDS[0]
        while True:
            await feed.wake.wait()
            feed.wake.clear()
            try:
                async with self._reads:
                    is_held_back = await _to_the_end(self._read(feed))
            except Exception as err:  # noqa: BLE001 - the feed must go on, whatever the database does
                log.warning("changes_not_read", project_id=feed.project_id, error=type(err).__name__)
                feed.wake.set()
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if is_held_back:
                # The writer that is waited for wakes the feed, too; its wake-up may be lost.
                asyncio.get_running_loop().call_later(again_after, feed.wake.set)
                again_after = min(again_after * 2, _HELD_BACK_SECONDS[1])
            else:
                again_after = _HELD_BACK_SECONDS[0]
            await asyncio.sleep(_PAUSE_SECONDS)  # what comes in a burst is read at once

    async def _read(self, feed: Feed) -> bool:
        """Report the new changes. Returns whether there are some that may not be shown yet."""
        async with reading(self._read_sessions) as session:
            for _ in range(_PAGES_AT_ONCE):
                horizon = max(await load_horizon(session, feed.project_id), feed.place.until)
                rows, has_more = await calendar_events.list_changes(
                    session,
                    feed.project_id,
                    calendar_id=None,
                    after=(feed.place.at, feed.place.event_id),
                    before=None,
                    limit=_PAGE,
                )
                found = [read_change(row) for row in rows]
                changes = [change for change in found if change.place.at < horizon]
                if changes:
                    feed.add(changes)
                if len(changes) < len(found) or not has_more:
                    feed.move_to(horizon)
                    return len(changes) < len(found)
                await asyncio.sleep(0)  # the clients take what came
        feed.wake.set()
        return False

    async def _repeat(self, step: Callable[[], Coroutine[Any, Any, float]]) -> None:
        while True:
            try:
                seconds = await _to_the_end(step())
            except Exception as err:  # noqa: BLE001 - as above
                log.warning("changes_not_read", error=type(err).__name__)
                seconds = _RETRY_SECONDS
            await asyncio.sleep(seconds)

    async def _look(self) -> float:
        """Wake the feeds that have news, by one statement for all of them, and drop those without clients."""
        for project_id, feed in list(self._feeds.items()):
            feed.forget_old()
            if feed.empty_since is not None and time.monotonic() - feed.empty_since > _KEEP_EMPTY_SECONDS:
                del self._feeds[project_id]
                self._tasks.pop(project_id).cancel()
        started = time.monotonic()
        if self._feeds:
            since = {project_id: feed.place.at for project_id, feed in self._feeds.items()}
            async with reading(self._read_sessions) as session:
                for project_id in await calendar_events.find_with_news(session, since):
                    self._wake(project_id)
        return max(_LOOK_SECONDS, (time.monotonic() - started) / _LOOK_SHARE)

    async def _call_for_comments(self) -> float:
        now = time.monotonic()
        for follower in self._followers:
            if follower.comment_at <= now:
                follower.news.set()
        return _COMMENTS_SECONDS

    async def _check(self) -> float:
        """End the clients whose API key was disabled, or whose calendar was deleted."""
        followers = list(self._followers)
        key_ids = {follower.key_id for follower in followers if follower.key_id is not None}
        calendar_ids = {f.scope.calendar_id for f in followers if f.scope.calendar_id is not None}
        if followers:
            async with reading(self._read_sessions) as session:
                live = await find_live_key_ids(session, key_ids)
                existing = await find_existing(session, calendar_ids) if calendar_ids else set()
            for follower in followers:
                calendar_id = follower.scope.calendar_id
                if follower.key_id not in live or (calendar_id is not None and calendar_id not in existing):
                    follower.end()
        return _CHECK_SECONDS


async def _to_the_end(step: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a step, which goes on to its end if this task is cancelled.

    A read that is cut off while it connects would leave the connection open.
    """
    task = asyncio.create_task(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_END_SECONDS)
        raise
