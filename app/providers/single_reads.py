"""Single reads of events that a list left out: they were deleted, or moved out of its range."""

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

_Result = RemoteEvent | ProviderError | None


class ReadOne(Protocol):
    """Read one event, or a series.

    None: the provider does not know it any more, or not as what is asked for.
    """

    def __call__(self, event_id: str, /, *, is_series: bool) -> Awaitable[RemoteEvent | None]: ...


async def read_singly(read_one: ReadOne, events: Sequence[KnownEvent], *, at_once: int) -> Reread:
    """Up to `MOST_READS` requests, `at_once` of them at a time.

    Of a series that lost several instances, the series is asked for first: if that was removed, so were they.
    Raises CredentialsRevoked, ClientMisconfigured; any other error of a request concerns its event alone.
    """
    reread = Reread()
    lost_of = Counter(event.recurring_event_id for event in events if event.recurring_event_id)
    series = [series_id for series_id, count in lost_of.items() if count > 1]
    results, goes_on = await _read_all(read_one, series[: MOST_READS // 2], at_once, is_series=True)
    removed = {series_id for series_id, result in results.items() if _is_removed(result)}
    reread.removed.update(
        (event.platform_uuid, None) for event in events if event.recurring_event_id in removed
    )
    left = [event.platform_uuid for event in events if event.platform_uuid not in reread.removed]
    if goes_on:
        results, _ = await _read_all(read_one, left[: MOST_READS - len(results)], at_once, is_series=False)
    for platform_uuid in left:
        result = results.get(platform_uuid, NotAsked("It was not asked for."))
        if isinstance(result, Transient):
            reread.unread.append(platform_uuid)
        elif isinstance(result, ProviderError):
            log.warning("event_not_readable", platform_uuid=platform_uuid, code=result.code)
        elif result is None or result.is_cancelled:
            reread.removed[platform_uuid] = result.raw if result is not None else None
        else:
            reread.found.append(result)
    return reread


def _is_removed(result: RemoteEvent | ProviderError | None) -> bool:
    return result is None or (isinstance(result, RemoteEvent) and result.is_cancelled)


async def _read_all(
    read_one: ReadOne, ids: Sequence[str], at_once: int, *, is_series: bool
) -> tuple[dict[str, _Result], bool]:
    """The results, and whether to go on: not if the provider, or a budget, asks to slow down."""
    results: dict[str, _Result] = {}
    for some in _batches(ids, at_once):
        asked = [read_one(one, is_series=is_series) for one in some]
        for one, result in zip(some, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(result, BaseException) and not isinstance(result, ProviderError):
                raise result
            if isinstance(result, CredentialsRevoked | ClientMisconfigured):
                raise result
            results[one] = result
        if any(isinstance(results[one], NotAsked | RateLimited) for one in some):
            return results, False
    return results, True


def _batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
