"""Opening, renewing and closing push channels in a worker.

A failure here does not affect a calendar's sync.

A channel's row is written before the request to the provider and again after its response; no transaction is open in
between. If a worker dies there, it leaves an `opening` row, which the next attempt deletes after the lease has expired.
Once a first channel is open, the calendar is synced once more, because it may have changed since its last sync.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import uuid4

import structlog

from app.core import metrics
from app.core.backoff import Backoff, spread
from app.core.crypto import SealBroken, SecretBox, sha256_hex
from app.core.db import Session, Sessions, transaction
from app.core.http import httpx
from app.credentials.budgets import Budgets, MeteredTokens
from app.credentials.store import CredentialStore
from app.providers.base import (
    ClientMisconfigured,
    ConnectionLost,
    FreshToken,
    ProviderError,
    TokenSource,
    Transient,
    Unavailable,
)
from app.providers.google import oauth as google_oauth
from app.providers.google.push import GooglePush
from app.providers.microsoft import oauth as microsoft_oauth
from app.providers.microsoft.push import MicrosoftPush
from app.providers.push import ChannelExists, ChannelUnknown, OpenedChannel, PushRefused
from app.push import repository
from app.push.repository import ClosingChannel, DueCalendar, Platform
from app.push.service import LEASE_FOR, sealed_context
from app.schedule import mark_due, sync_within
from app.settings import Settings

log = structlog.get_logger()

# Shorter than the lease, so that two workers never handle the same channel at once.
_TIMEOUT_SECONDS = 50.0
_BACKOFF = Backoff.exponential(60.0, 21_600.0, jitter=(0.75, 1.25))
# How long a calendar is only polled: without push at the provider, or if another calendar here has its subscription.
_REFUSED_FOR: dict[type[ProviderError], timedelta] = {
    PushRefused: timedelta(days=7),
    ChannelExists: timedelta(hours=6),
}
_REFUSED_JITTER = (0.9, 1.1)
_POLL_JITTER = (0.8, 1.0)
# Share of a channel's life after which it is renewed.
_RENEW_AT = (0.4, 0.5)
# A provider may return an end that has passed already.
_SHORTEST_LIFE = timedelta(seconds=60)

_Push = GooglePush | MicrosoftPush


class PushChannelWorker:
    """Claims channels that are due, and opens, renews or closes them. Any number may run."""

    def __init__(
        self,
        *,
        settings: Settings,
        sessions: Sessions,
        box: SecretBox,
        credentials: CredentialStore,
        budgets: Budgets,
        client: httpx.AsyncClient,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._box = box
        self._credentials = credentials
        self._budgets = budgets
        self._client = client

    async def claim(self, limit: int) -> Sequence[DueCalendar | ClosingChannel]:
        """Claim up to `limit` channels.

        With push disabled only those that are to be closed; the others expire.
        """
        due: list[DueCalendar | ClosingChannel] = []
        async with transaction(self._sessions) as session:
            if self._settings.push_enabled:
                due += await repository.claim_calendars(session, limit=limit, lease_for=LEASE_FOR)
            if len(due) < limit:
                due += await repository.claim_closing(session, limit=limit - len(due), lease_for=LEASE_FOR)
        return due

    async def handle(self, due: DueCalendar | ClosingChannel) -> None:
        """Do the work of one claim. An error of the provider is recorded and not raised."""
        if isinstance(due, DueCalendar):
            structlog.contextvars.bind_contextvars(calendar_id=due.id)
            await self._guarded(due.platform, lambda: self._keep(due), lambda err: self._postpone(due, err))
        else:
            structlog.contextvars.bind_contextvars(channel_id=due.id)
            await self._guarded(due.platform, lambda: self._close(due), lambda err: self._put_off(due, err))

    async def _guarded(
        self,
        platform: Platform,
        work: Callable[[], Awaitable[str]],
        on_error: Callable[[ProviderError], Awaitable[str]],
    ) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                outcome = await work()
        except ProviderError as err:
            outcome = await on_error(err)
        except TimeoutError:
            outcome = await on_error(Unavailable("The provider took too long.", code="timeout"))
        except Exception as err:
            log.exception("push_channel_crashed")
            outcome = await on_error(
                Unavailable(f"Internal error: {type(err).__name__}.", code="internal_error")
            )
        metrics.PUSH_CHANNELS.labels(platform, outcome).inc()

    # --- opening and renewing ----------------------------------------------------------------------------

    async def _keep(self, due: DueCalendar) -> str:
        if due.credentials_id is None:
            raise ClientMisconfigured("The calendar has no credentials.", code="no_credentials")
        tokens = MeteredTokens(
            self._credentials.tokens(due.credentials_id),
            self._budgets,
            platform=due.platform,
            account=due.owner_email or due.credentials_id,
            client_id=due.client_id or due.credentials_id,
        )
        push = self._push(due.platform, due.platform_uuid, tokens)
        if isinstance(push, MicrosoftPush) and await self._renew(due, push):
            return "renewed"
        return await self._open(due, push)

    async def _renew(self, due: DueCalendar, push: MicrosoftPush) -> bool:
        """Renew the calendar's subscription; return False if there is none."""
        async with transaction(self._sessions) as session:
            found = await repository.find_open(session, due.id)
        if found is None:
            return False
        channel_id, provider_id = found
        try:
            expires_at = await push.renew(provider_id, address=self._address(due.platform))
        except ChannelUnknown:
            async with transaction(self._sessions) as session:
                await sync_within(session, due.id, self._poll_in())
                await repository.drop_channels(session, [channel_id])
            return False
        async with transaction(self._sessions) as session:
            await self._schedule_renewal(session, due, expires_at)
            await repository.settle_renewed(session, channel_id, expires_at)
        return True

    async def _open(self, due: DueCalendar, push: _Push) -> str:
        channel_id, secret = str(uuid4()), secrets.token_urlsafe(32)
        async with transaction(self._sessions) as session:
            was_cut = await repository.begin_opening(
                session, due, channel_id=channel_id, secret_sha256=sha256_hex(secret)
            )
        if was_cut is None:
            return "lease_lost"
        opened = await self._ask_to_open(due, push, channel_id, secret, was_cut=was_cut)
        async with transaction(self._sessions) as session:
            state, was_notified = await repository.settle_opened(
                session,
                due,
                channel_id=channel_id,
                provider_id=opened.provider_id,
                resource_id=opened.resource_id,
                expires_at=opened.expires_at,
                poll_in=self._poll_in(),
            )
            await self._schedule_renewal(session, due, opened.expires_at)
            if state == "open" and not was_notified:
                await mark_due(session, sync_ids=[due.id], delay=timedelta(0))
        if state is None:
            # Another worker took its row for an abandoned one and deleted it, so only this process knows the channel.
            with suppress(ProviderError):
                await push.close(
                    channel_id=channel_id, provider_id=opened.provider_id, resource_id=opened.resource_id
                )
        return "opened"

    async def _ask_to_open(
        self, due: DueCalendar, push: _Push, channel_id: str, secret: str, *, was_cut: bool
    ) -> OpenedChannel:
        address = self._address(due.platform)
        if was_cut and isinstance(push, MicrosoftPush):
            await self._close_strays(due, push, address)
        try:
            return await push.open(channel_id=channel_id, secret=secret, address=address)
        except ChannelExists:
            if not isinstance(push, MicrosoftPush) or not await self._close_strays(due, push, address):
                raise
        return await push.open(channel_id=channel_id, secret=secret, address=address)

    async def _close_strays(self, due: DueCalendar, push: MicrosoftPush, address: str) -> int:
        """Close subscriptions to this calendar that serve no calendar here; return how many.

        They are from a worker that died before it could write them, or from an earlier connection. If the same calendar
        is connected twice, the other one's subscription may be unwritten because it is being opened right now. Then
        this raises Unavailable (`channel_opening`), to be tried again later.
        """
        found = await push.find_equal(address=address)
        async with transaction(self._sessions) as session:
            # This query comes first: a channel that is opened between the two is found by the second.
            is_opening = await repository.is_opening_equal(session, due, opens_within=LEASE_FOR)
            held = await repository.find_held(session, found)
        if is_opening and not held.issuperset(found):
            raise Unavailable(
                "A channel to the same calendar is being opened.",
                code="channel_opening",
                retry_after=LEASE_FOR.total_seconds(),
            )
        strays = [provider_id for provider_id in found if provider_id not in held]
        for provider_id in strays:
            await push.close(channel_id="", provider_id=provider_id, resource_id=None)
        return len(strays)

    async def _postpone(self, due: DueCalendar, err: ProviderError) -> str:
        refused_for = _REFUSED_FOR.get(type(err))
        if refused_for is not None:
            retry_in = timedelta(seconds=spread(refused_for.total_seconds(), _REFUSED_JITTER))
            async with transaction(self._sessions) as session:
                await repository.drop_opening(session, due.id)
        else:
            async with transaction(self._sessions) as session:
                retry_in = _retry_in(err, await repository.count_failure(session, due.id))
        async with transaction(self._sessions) as session:
            await repository.schedule(session, due, retry_in)
        log.warning(
            "push_channel_not_opened",
            code=err.code,
            error=err.message,
            retry_in_seconds=round(retry_in.total_seconds()),
        )
        return "failed" if refused_for is None else "refused"

    # --- closing -----------------------------------------------------------------------------------------

    async def _close(self, due: ClosingChannel) -> str:
        has_ids = (due.resource_id if due.platform == "google" else due.provider_id) is not None
        # Without the provider's ids it cannot be closed: it was never opened, or the worker died meanwhile.
        if has_ids and not due.has_expired:
            push = self._push(due.platform, due.platform_uuid, self._tokens_to_close(due))
            await push.close(channel_id=due.id, provider_id=due.provider_id, resource_id=due.resource_id)
        async with transaction(self._sessions) as session:
            await repository.drop_channels(session, [due.id])
        return "closed"

    def _tokens_to_close(self, due: ClosingChannel) -> TokenSource:
        if due.credentials_id is not None:
            return self._credentials.tokens(due.credentials_id)
        if due.sealed is None:
            raise ClientMisconfigured("The channel has no credentials.", code="no_credentials")
        try:
            grant = self._box.open(sealed_context(due.id), due.sealed)
        except SealBroken as err:
            raise ClientMisconfigured(str(err), code="seal_broken") from None
        return _GrantTokens(self._settings, self._client, due.platform, grant)

    async def _put_off(self, due: ClosingChannel, err: ProviderError) -> str:
        async with transaction(self._sessions) as session:
            if isinstance(err, ConnectionLost):
                # Only the account that opened it can close it. It expires, and is ignored until then.
                await repository.drop_channels(session, [due.id])
            else:
                await repository.retry_closing(session, due.id, _retry_in(err, due.attempt_count + 1))
        log.warning("push_channel_not_closed", code=err.code, error=err.message)
        return "abandoned" if isinstance(err, ConnectionLost) else "failed"

    # --- providers ---------------------------------------------------------------------------------------

    def _push(self, platform: Platform, calendar_uuid: str | None, tokens: TokenSource) -> _Push:
        if platform == "google":
            return GooglePush(
                client=self._client,
                tokens=tokens,
                base_url=self._settings.google_api_base_url,
                calendar_id=calendar_uuid,
            )
        return MicrosoftPush(
            client=self._client,
            tokens=tokens,
            base_url=self._settings.microsoft_graph_base_url,
            calendar_id=calendar_uuid,
        )

    async def _schedule_renewal(self, session: Session, due: DueCalendar, expires_at: datetime) -> None:
        """Make the renewal due within the channel's life, spread so that not all are renewed at the same time."""
        share = spread(1.0, _RENEW_AT)
        await repository.schedule_renewal(session, due, expires_at, share=share, shortest_life=_SHORTEST_LIFE)

    def _poll_in(self) -> timedelta:
        return timedelta(seconds=spread(self._settings.calendar_sync_interval_seconds, _POLL_JITTER))

    def _address(self, platform: Platform) -> str:
        return f"{self._settings.app_url}/notifications/{platform}"


class _GrantTokens:
    """The TokenSource of a deleted calendar. It caches nothing."""

    def __init__(
        self, settings: Settings, client: httpx.AsyncClient, platform: Platform, grant: dict[str, str]
    ) -> None:
        self._client = client
        self._grant = grant
        self._refresh: Callable[..., Awaitable[FreshToken]]
        if platform == "google":
            self._refresh = google_oauth.refresh_access_token
            self._token_url = settings.google_oauth_token_url
        else:
            self._refresh = microsoft_oauth.refresh_access_token
            self._token_url = settings.microsoft_oauth_token_url

    async def get(self, *, rejected: str | None = None) -> str:  # noqa: ARG002 - every token is a fresh one
        fresh = await self._refresh(self._client, token_url=self._token_url, **self._grant)
        return fresh.access_token


def _retry_in(err: ProviderError, failures: int) -> timedelta:
    retry_after = err.retry_after if isinstance(err, Transient) else None
    return timedelta(seconds=_BACKOFF.delay(failures, retry_after=retry_after))
