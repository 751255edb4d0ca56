"""Deliveries: claim, sign, POST, record. No transaction is open while an endpoint is being called.

Delivery is at least once: a delivery stays pending until an attempt is recorded. If a worker dies between the POST and
the record, its lease expires, and another worker sends the same bytes with the same id again.
"""

import ssl
import time
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit
from zlib import crc32

import orjson
import structlog

from app.core import metrics
from app.core.backoff import Backoff
from app.core.clock import isoformat, utcnow
from app.core.crypto import SealBroken, SecretBox
from app.core.db import Session, Sessions, transaction
from app.core.fetch import FetchFailed, Response, fetch, retry_after
from app.core.http import httpx, public_client
from app.core.lease import Lease
from app.settings import Settings
from app.webhooks.endpoint_secrets import open_secrets
from app.webhooks.repository import claims, endpoints
from app.webhooks.repository.claims import DueDelivery
from app.webhooks.signing import signature_headers
from app.webhooks.targets import url_fault
from app.webhooks.turns import Slots

log = structlog.get_logger()

# The time that a worker may need between claiming and recording, in addition to the attempt itself.
_LEASE_MARGIN_SECONDS = 10.0
_DISABLE_AFTER_DAYS = 5
# An endpoint is slow once a response takes this long, and until one takes less than half of it.
_SLOW_SECONDS = 1.0
_WAKE_BATCH = 500
_PARK_BATCH = 1_000
_READ_AT_MOST_BYTES = 65_536
_RESPONSE_CHARACTERS = 500
_POOLS = 16

# Retries come later than the schedule says, by up to a fifth, never earlier.
_JITTER = (1.0, 1.2)

BODY_HEADERS = {"Content-Type": "application/json"}

Outcome = Literal["success", "status", "redirect", "timeout", "dns", "tls", "connection", "refused", "secret"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one POST. `error` is None for a success; `retry_after` is in seconds."""

    at: datetime
    outcome: Outcome
    status_code: int | None
    duration_ms: int
    response: str | None
    error: str | None
    retry_after: float | None

    def record(self) -> dict[str, Any]:
        """Return the attempt as the API shows it."""
        return {
            "at": isoformat(self.at),
            "status_code": self.status_code,
            "duration_ms": self.duration_ms,
            "response": self.response,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that this process has claimed."""

    due: DueDelivery
    lease: Lease


def webhook_client(settings: Settings, *, verify: ssl.SSLContext | bool = True) -> httpx.AsyncClient:
    """Create a client for endpoints. Its pool has room for new connections while idle ones are kept open."""
    return public_client(
        allow_private=settings.allow_private_network_targets,
        allowed_hosts=settings.webhook_allowed_hosts,
        timeout=settings.webhook_timeout_seconds,
        max_connections=2 * settings.webhook_concurrency,
        verify=verify,
    )


@cache
def tls_context() -> ssl.SSLContext:
    """Return the system's certificate authorities; reading them blocks for 26 ms, so it is done once."""
    return httpx.create_ssl_context(trust_env=False)


class _Clients:
    """Several connection pools, each for a share of the hosts.

    At every request httpcore compares all connections of a pool with each other. With a hundred hosts in one pool this
    takes milliseconds, and the limit of idle connections closes those of other hosts.
    """

    def __init__(self, settings: Settings, verify: ssl.SSLContext | bool) -> None:
        if verify is True:
            verify = tls_context()
        self._clients = [webhook_client(settings, verify=verify) for _ in range(_POOLS)]

    def __getitem__(self, url: str) -> httpx.AsyncClient:
        return self._clients[crc32(urlsplit(url).netloc.encode()) % _POOLS]

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()


async def send(
    client: httpx.AsyncClient,
    settings: Settings,
    *,
    url: str,
    message_id: str,
    body: bytes,
    secrets: list[str],
) -> Attempt:
    """Send one signed POST, with limits on its time and on the response.

    An endpoint's error is not raised.
    """
    at, started = utcnow(), time.perf_counter()
    # The settings may have become stricter since the URL was accepted.
    fault = url_fault(url, settings)
    if fault is not None:
        return Attempt(at, "refused", None, 0, None, f"refused: {fault}", None)
    headers = {
        **BODY_HEADERS,
        # A compressed response could expand to any size.
        "Accept-Encoding": "identity",
        **signature_headers(secrets, message_id=message_id, attempted_at=at, body=body),
    }
    outcome: Outcome = "success"
    error: str | None = None
    text: str | None = None
    result: Response | FetchFailed
    try:
        # The start of the response is enough; a short one is read to its end, so that the connection can be reused.
        result = await fetch(
            client,
            "POST",
            url,
            content=body,
            headers=headers,
            max_bytes=_READ_AT_MOST_BYTES,
            deadline_seconds=settings.webhook_timeout_seconds,
            decode=False,
            truncate=True,
        )
    except FetchFailed as err:
        result = err
        outcome, error = _transport_fault(err, settings)
    else:
        # PostgreSQL's JSON has no NUL.
        start = result.body[: 4 * _RESPONSE_CHARACTERS].decode("utf-8", "replace")
        text = start.replace("\x00", "\ufffd")[:_RESPONSE_CHARACTERS]
        if 300 <= result.status < 400:
            outcome, error = "redirect", f"redirect: {result.status} is not followed; set the final URL"
        elif not 200 <= result.status < 300:
            outcome, error = "status", f"status: answered {result.status} instead of 2xx"
    wait = retry_after(result.headers) if result.status in {429, 503} else None
    duration = time.perf_counter() - started
    return Attempt(at, outcome, result.status, round(duration * 1000), text, error, wait)


def _transport_fault(err: FetchFailed, settings: Settings) -> tuple[Outcome, str]:
    """Return the outcome and the error text of a request without a complete response."""
    if err.code == "timeout":
        seconds = settings.webhook_timeout_seconds
        return "timeout", f"timeout: no complete answer within {seconds:g} seconds"
    if err.code in {"refused", "tls", "dns"}:
        return cast("Outcome", err.code), f"{err.code}: {err.reason}"
    if err.code == "connect":
        return "connection", "connection: the endpoint does not accept connections"
    return "connection", f"connection: broken off before the answer was complete ({err.cause})"


class Deliverer:
    """Sends deliveries in a worker: `claim`, then `handle` each in a task of its own.

    An async context manager.

    An endpoint has at most WEBHOOK_ENDPOINT_CONCURRENCY deliveries under way over all workers: half as many if it is
    slow, one if its last attempt failed. turns.py shares the worker's WEBHOOK_CONCURRENCY slots among projects and
    endpoints.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        sessions: Sessions,
        box: SecretBox,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._box = box
        self._clients = _Clients(settings, verify)
        self._slots = Slots(settings.webhook_concurrency)
        self._after = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._clients.aclose()

    async def claim(self, limit: int) -> list[ClaimedDelivery]:
        """Claim up to `limit` due deliveries, with a lease that covers one attempt. Call `handle` for each.

        Fewer than `limit` do not mean that nothing is left: an endpoint or a project may be at its own limit. So call
        it again whenever a delivery has ended.
        """
        lease = Lease.new(begin_within_seconds=_LEASE_MARGIN_SECONDS / 2)
        async with transaction(self._sessions) as session:
            await claims.wake_due(session, _WAKE_BATCH)
            found = await claims.find_ready(
                session,
                after=self._after,
                limit=64 + 2 * limit,  # more than are needed, so that every project is among them
                per_endpoint=self._settings.webhook_endpoint_concurrency,
                held=self._slots,
            )
            due: list[DueDelivery] = []
            given = self._slots.share_out(found.endpoints, limit)
            if given:
                due = await claims.claim_due(
                    session,
                    given=given,
                    slots=found.slots,
                    lease_token=lease.token,
                    lease_seconds=self._settings.webhook_timeout_seconds + _LEASE_MARGIN_SECONDS,
                )
            if found.disabled:
                await claims.park_disabled(
                    session,
                    found.disabled,
                    keep_days=self._settings.webhook_delivery_retention_days,
                    limit=_PARK_BATCH,
                )
        self._after = found.after
        for delivery in due:
            self._slots.take(delivery.project_id, is_slow=_is_slow(delivery))
        return [ClaimedDelivery(delivery, lease) for delivery in due]

    async def handle(self, delivery: ClaimedDelivery) -> None:
        """Sign, send and record one attempt. An error of the endpoint is recorded and not raised."""
        due = delivery.due
        try:
            if delivery.lease.is_too_late:
                log.warning("webhook_attempt_too_late", delivery_id=due.id)
                return
            attempt = await self._attempt(due)
            metrics.DELIVERY_ATTEMPTS.labels(due.trigger, attempt.outcome).inc()
            metrics.DELIVERY_SECONDS.observe(attempt.duration_ms / 1000)
            await self._record(delivery, attempt)
        finally:
            self._slots.give_back(due.project_id, is_slow=_is_slow(due))

    async def _attempt(self, due: DueDelivery) -> Attempt:
        try:
            secrets = open_secrets(self._box, due.endpoint_id, due.secrets_sealed)
        except SealBroken as err:
            log.error("webhook_secret_unreadable", webhook_id=due.endpoint_id, reason=str(err))  # noqa: TRY400 - the reason is enough
            error = "secret: the stored secret can no longer be decrypted, so nothing was sent; POST rotate_secret"
            return Attempt(utcnow(), "secret", None, 0, None, error, None)
        return await send(
            self._clients[due.url],
            self._settings,
            url=due.url,
            message_id=due.idempotency_key,
            body=due.body,
            secrets=secrets,
        )

    async def _record(self, delivery: ClaimedDelivery, attempt: Attempt) -> None:
        due = delivery.due
        succeeded = attempt.outcome == "success"
        wait = None if succeeded else self._wait(due.retry_count, attempt)
        status = "success" if succeeded else "failed" if wait is None else "pending"
        disabled_because: str | None = None
        async with transaction(self._sessions) as session:
            if succeeded:
                await self._note_success(session, due, attempt)
            elif attempt.outcome != "secret":  # not a failure of the endpoint
                disabled_because = await self._note_failure(session, due, attempt)
            recorded = await claims.record_attempt(
                session,
                due.id,
                lease_token=delivery.lease.token,
                status=status,
                next_in_seconds=wait,
                attempt=orjson.dumps(attempt.record()).decode(),
            )
        if not recorded:
            log.warning("webhook_lease_lost", delivery_id=due.id, outcome=attempt.outcome)
        elif not succeeded:
            log.warning(
                "webhook_attempt_failed" if status == "pending" else "webhook_delivery_failed",
                project_id=due.project_id,
                webhook_id=due.endpoint_id,
                delivery_id=due.id,
                attempt=due.retry_count + 1,
                outcome=attempt.outcome,
                status_code=attempt.status_code,
                next_attempt_in=None if wait is None else round(wait),
            )
        if disabled_because is not None:
            log.error(
                "webhook_disabled",
                project_id=due.project_id,
                webhook_id=due.endpoint_id,
                reason=disabled_because,
            )

    async def _note_success(self, session: Session, due: DueDelivery, attempt: Attempt) -> None:
        """Update the endpoint's state, only if it changes: a busy endpoint has many deliveries a second."""
        seconds = attempt.duration_ms / 1000
        is_slow = seconds >= _SLOW_SECONDS or (due.is_slow and seconds >= _SLOW_SECONDS / 2)
        if is_slow != due.is_slow:
            await endpoints.set_slow(session, due.endpoint_id, due.url, is_slow)
        # A delivery that was claimed before the endpoint failed says nothing about the time since.
        if due.is_failing:
            await endpoints.note_success(session, due.endpoint_id, due.url)

    def _wait(self, retry_count: int, attempt: Attempt) -> float | None:
        """Return the seconds until the next attempt; None at the end of the schedule."""
        schedule = self._settings.webhook_retry_schedule_seconds
        if retry_count >= len(schedule):
            return None
        return Backoff(schedule, _JITTER).delay(retry_count + 1, retry_after=attempt.retry_after)

    async def _note_failure(self, session: Session, due: DueDelivery, attempt: Attempt) -> str | None:
        """Update the endpoint's state; return the reason if this attempt disables it."""
        state = await endpoints.note_failure(
            session, due.endpoint_id, due.url, pause_seconds=attempt.retry_after
        )
        if state is None or not state.is_active:
            return None
        if attempt.status_code == 410:
            reason = f"The endpoint answered 410 Gone at {isoformat(attempt.at)}."
        elif (
            state.failing_for_seconds >= _DISABLE_AFTER_DAYS * 86_400
            # If an endpoint has few deliveries, two failures say nothing about the days between them.
            and state.failing_days >= _DISABLE_AFTER_DAYS
        ):
            since = isoformat(state.failing_since)
            reason = f"No attempt has succeeded since {since}; the last error was: {attempt.error}."
        else:
            return None
        await endpoints.disable(session, due.endpoint_id, reason)
        return reason


def _is_slow(due: DueDelivery) -> bool:
    return due.is_failing or due.is_slow
