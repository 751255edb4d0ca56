"""Gauges over the whole database, as Prometheus text: waiting times and numbers of rows.

Each gauge has its own statement and time limit, and costs about the same for tables of any size: due rows are found by
an index, counts stop at a limit, and large tables are estimated from a sample of their pages. A gauge that cannot be
read in time is left out, and `calbridge_gauge_read` is 0 for it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.core.db import DATABASE_UNAVAILABLE, ReadSession, Sessions, reading
from app.health import repository

log = structlog.get_logger()

# All gauges together take less than Prometheus' default scrape_timeout of 10 s.
_EACH_WITHIN = timedelta(milliseconds=800)
_TIMEOUT_SECONDS = 2.0
_KEPT_SECONDS = 10.0

_SYNCED_PLATFORMS = ("google", "microsoft", "ics")
_BREAKERS_OF = {"google": "google", "microsoft": "microsoft", "feed": "feed_host", "client": "oauth_client"}

Families = list[GaugeMetricFamily]


class GaugeReader:
    """Reads the gauges on request and keeps them for some seconds."""

    def __init__(self, sessions: Sessions, *, bot_lead: timedelta) -> None:
        self._sessions = sessions
        self._bot_lead = bot_lead
        self._lock = asyncio.Lock()
        self._text = b""
        self._read_at = float("-inf")

    async def read(self) -> bytes:
        """Return the gauges. While the database is unavailable, the only one is `calbridge_database_up 0`."""
        async with self._lock:
            if time.monotonic() - self._read_at > _KEPT_SECONDS:
                self._text = generate_latest(_registry_of(await self._families()))
                self._read_at = time.monotonic()
            return self._text

    async def _families(self) -> Families:
        up = GaugeMetricFamily("calbridge_database_up", "1 if the database is available", value=0)
        if await self._try("database", _ping) is None:
            return [up]
        up = GaugeMetricFamily("calbridge_database_up", "1 if the database is available", value=1)
        was_read = GaugeMetricFamily(
            "calbridge_gauge_read", "0 if reading the gauge took too long", labels=["gauge"]
        )
        families = [up, was_read]
        readers: dict[str, Callable[[ReadSession], Awaitable[Families]]] = {
            "workers": _workers,
            "sync_lag": _sync_lag,
            "delivery_lag": _delivery_lag,
            "mail_lag": _mail_lag,
            "bot_lag": self._bot_lag,
            "outbox": _outbox,
            "calendars": _calendars,
            "breakers": _breakers,
            "push_channels": _push_channels,
        }
        for name, read in readers.items():
            found = await self._try(name, read)
            was_read.add_metric([name], 0 if found is None else 1)
            families += found or []
        return families

    async def _try(self, name: str, read: Callable[[ReadSession], Awaitable[Families]]) -> Families | None:
        """Return what was read; None if the database is unavailable or took too long."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS), reading(self._sessions) as session:
                await repository.limit_time(session, _EACH_WITHIN)
                return await read(session)
        except DATABASE_UNAVAILABLE as err:
            log.warning("gauge_not_read", gauge=name, error=type(err).__name__)
            return None

    async def _bot_lag(self, session: ReadSession) -> Families:
        seconds = await repository.load_bot_lag(session, self._bot_lead)
        return [_gauge("calbridge_bot_lag_seconds", "How long the longest overdue bot has waited", seconds)]


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


async def _ping(session: ReadSession) -> Families:
    await repository.ping(session)
    return []


async def _workers(session: ReadSession) -> Families:
    count = await repository.count_workers(session)
    return [_gauge("calbridge_workers", "Workers that were seen in the last 30 seconds", count)]


async def _sync_lag(session: ReadSession) -> Families:
    lags = dict.fromkeys(_SYNCED_PLATFORMS, 0.0) | await repository.load_sync_lags(session)
    text = "How long the longest overdue calendar has waited for its sync"
    rows = (([platform], lag) for platform, lag in lags.items())
    return [_labelled("calbridge_sync_lag_seconds", text, ["platform"], rows)]


async def _delivery_lag(session: ReadSession) -> Families:
    text = (
        "How long the longest overdue webhook delivery has waited, without those of failing or busy endpoints"
    )
    return [_gauge("calbridge_delivery_lag_seconds", text, await repository.load_delivery_lag(session))]


async def _mail_lag(session: ReadSession) -> Families:
    text = "How long the longest overdue mail has waited"
    return [_gauge("calbridge_mail_lag_seconds", text, await repository.load_mail_lag(session))]


async def _outbox(session: ReadSession) -> Families:
    deliveries, mails = await repository.count_pending(session)
    return [
        _gauge(
            "calbridge_outbox_pending",
            "Webhook deliveries that are not finished, counted up to 10000",
            deliveries,
        ),
        _gauge(
            "calbridge_invitation_mails_pending", "Mails that are not finished, counted up to 10000", mails
        ),
    ]


async def _calendars(session: ReadSession) -> Families:
    rows = await repository.count_calendars(session)
    counts: Counter[tuple[str, str]] = Counter()
    failing: Counter[tuple[str, str]] = Counter()
    held: Counter[str] = Counter()
    in_doubt: Counter[str] = Counter()
    for row in rows:
        counts[row.platform, row.state] += int(row.rows)
        if row.failure is not None:
            failing[row.platform, row.failure] += int(row.rows)
        if row.state == "connected":
            held[row.platform] += int(row.held)
            in_doubt[row.platform] += int(row.in_doubt)
    return [
        _labelled(
            "calbridge_calendars",
            "Calendars; an estimate above about ten thousand",
            ["platform", "state"],
            counts.items(),
        ),
        _labelled(
            "calbridge_calendars_failing",
            "Connected calendars whose last sync failed; an estimate above about ten thousand",
            ["platform", "code"],
            failing.items(),
        ),
        _labelled(
            "calbridge_calendars_held",
            "Connected calendars that wait for an outage to end; an estimate above about ten thousand",
            ["platform"],
            (([platform], count) for platform, count in held.items()),
        ),
        _labelled(
            "calbridge_calendars_in_doubt",
            "Connected calendars whose last response left out most events and is not confirmed yet",
            ["platform"],
            (([platform], count) for platform, count in in_doubt.items()),
        ),
    ]


async def _breakers(session: ReadSession) -> Families:
    found = {row.kind: row for row in await repository.count_open_breakers(session)}

    def each(field: str) -> Iterable[tuple[Sequence[str], float]]:
        return (
            ([of], float(getattr(found[kind], field)) if kind in found else 0)
            for kind, of in _BREAKERS_OF.items()
        )

    return [
        _labelled(
            "calbridge_breakers_open",
            "Platforms, hosts of feeds and OAuth clients that fail for many calendars, so that these wait",
            ["of"],
            each("rows"),
        ),
        _labelled(
            "calbridge_outage_seconds", "How long the longest such outage has lasted", ["of"], each("seconds")
        ),
    ]


async def _push_channels(session: ReadSession) -> Families:
    rows = await repository.count_channels(session)
    text = "Push channels that are open; an estimate above about ten thousand"
    counts = (([row.platform], row.rows) for row in rows)
    return [_labelled("calbridge_push_channels_open", text, ["platform"], counts)]


class _Families(Collector):
    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Families:
        return self._families


def _registry_of(families: Families) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return registry
