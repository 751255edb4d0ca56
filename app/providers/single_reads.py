"""Events that a list leaves out, each asked for by itself: were they deleted, or did they only move out of its range?"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from typing import Protocol

import structlog

from app.events.data import KnownEvent, RemoteEvent
from app.providers.base import (
    ClientMisconfigured,
    CredentialsRevoked,
    NotAsked,
    ProviderError,
    RateLimited,
    Reread,
    Transient,
)

log = structlog.get_logger(__name__)

# Requests in one sync: a third of what Google allows a user in a minute. More are asked for in the next round.
MOST_READS = 200

_Answer = RemoteEvent | ProviderError | None


class ReadOne(Protocol):
    """Asks for one event, or for a series. None: the provider does not know it any more, or not as what is asked for."""

    def __call__(self, event_id: str, /, *, is_series: bool) -> Awaitable[RemoteEvent | None]: ...


async def read_singly(read_one: ReadOne, events: Sequence[KnownEvent], *, at_once: int) -> Reread:
    """Up to `MOST_READS` requests, `at_once` of them at a time.

    Of a series that lost several instances, the series is asked for first: if that was removed, so were they.
    Raises CredentialsRevoked, ClientMisconfigured; whatever else a request raises concerns its event alone.
    """
    reread = Reread()
    lost_of = Counter(event.recurring_event_id for event in events if event.recurring_event_id)
    series = [series_id for series_id, count in lost_of.items() if count > 1]
    answers, goes_on = await _read_all(read_one, series[: MOST_READS // 2], at_once, is_series=True)
    dead = {series_id for series_id, answer in answers.items() if _is_removed(answer)}
    reread.removed.update((event.platform_uuid, None) for event in events if event.recurring_event_id in dead)
    left = [event.platform_uuid for event in events if event.platform_uuid not in reread.removed]
    if goes_on:
        answers, _ = await _read_all(read_one, left[: MOST_READS - len(answers)], at_once, is_series=False)
    for platform_uuid in left:
        answer = answers.get(platform_uuid, NotAsked("It was not asked for."))
        if isinstance(answer, Transient):
            reread.unread.append(platform_uuid)
        elif isinstance(answer, ProviderError):
            log.warning("event_not_readable", platform_uuid=platform_uuid, code=answer.code)
        elif answer is None or answer.is_cancelled:
            reread.removed[platform_uuid] = answer.raw if answer is not None else None
        else:
            reread.found.append(answer)
    return reread


def _is_removed(answer: RemoteEvent | ProviderError | None) -> bool:
    return answer is None or (isinstance(answer, RemoteEvent) and answer.is_cancelled)


async def _read_all(
    read_one: ReadOne, ids: Sequence[str], at_once: int, *, is_series: bool
) -> tuple[dict[str, _Answer], bool]:
    """The answers, and whether to go on: not where the provider, or a budget, asks to slow down."""
    answers: dict[str, _Answer] = {}
    for some in _batches(ids, at_once):
        asked = [read_one(one, is_series=is_series) for one in some]
        for one, answer in zip(some, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, ProviderError):
                raise answer
            if isinstance(answer, CredentialsRevoked | ClientMisconfigured):
                raise answer
            answers[one] = answer
        if any(isinstance(answers[one], NotAsked | RateLimited) for one in some):
            return answers, False
    return answers, True


def _batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
