"""The worker's side of push: opens, renews and closes channels. A failure here never touches a calendar's sync.

A channel's row is written before the provider is asked, and again after it has answered; no transaction is open
in between. A worker that dies there leaves an `opening` row, which the next attempt clears away when the
lease has run out. Once a first channel is open, the calendar is synced once more, for what
changed between its last sync and then.
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
from app.core.clock import utcnow
from app.core.crypto import SealBroken, SecretBox, sha256_hex
from app.core.db import Sessions, transaction
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

# Within the lease, so that two workers never handle the same channel at once.
_WITHIN_SECONDS = 50.0
_BACKOFF = Backoff.exponential(60.0, 21_600.0, jitter=(0.75, 1.25))
# How long a calendar is only polled that has no push, or whose subscription serves another calendar of ours.
_REFUSED_FOR: dict[type[ProviderError], timedelta] = {
    PushRefused: timedelta(days=7),
    ChannelExists: timedelta(hours=6),
}
_REFUSED_JITTER = (0.9, 1.1)
_POLL_JITTER = (0.8, 1.0)
# Share of a channel's life after which it is renewed.
_RENEW_AT = (0.4, 0.5)
_SHORTEST_LIFE_SECONDS = 60.0

_Push = GooglePush | MicrosoftPush


class ChannelKeeper:
    """Claims channels that are due and works them off; any number of keepers may run."""

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
        """With push switched off nothing is opened or renewed: the channels that are left run out."""
        due: list[DueCalendar | ClosingChannel] = []
        async with transaction(self._sessions) as session:
            if self._settings.push_enabled:
                due += await repository.claim_calendars(session, limit=limit, lease_for=LEASE_FOR)
            if len(due) < limit:
                due += await repository.claim_closing(session, limit=limit - len(due), lease_for=LEASE_FOR)
        return due

    async def handle(self, due: DueCalendar | ClosingChannel) -> None:
        """Never raises for the provider's fault."""
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
            async with asyncio.timeout(_WITHIN_SECONDS):
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
        """Whether there was a subscription to renew."""
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
            await repository.schedule(session, due, _renewal_in(expires_at))
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
            await repository.schedule(session, due, _renewal_in(opened.expires_at))
            if state == "open" and not was_notified:
                await mark_due(session, sync_ids=[due.id], delay=timedelta(0))
        if state is None:
            # Its row was cleared away as another worker's leftover: nobody else knows of the channel.
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
        """Closes subscriptions to this calendar that serve none of our calendars; how many.

        They are of a worker that died before it could note them, or of a connection before this one. One that is
        just being opened, for the same calendar connected twice, is not noted yet either: it is waited for. Raises
        Unavailable (`channel_opening`).
        """
        found = await push.find_equal(address=address)
        async with transaction(self._sessions) as session:
            # Asked first: what is opened in between is held by then.
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
        # Without the provider's ids it cannot be closed: opening it never got that far, or its worker died.
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
                # Only the account that opened it could close it. It ends by itself, and is ignored until then.
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

    def _poll_in(self) -> timedelta:
        return timedelta(seconds=spread(self._settings.calendar_sync_interval_seconds, _POLL_JITTER))

    def _address(self, platform: Platform) -> str:
        return f"{self._settings.app_url}/notifications/{platform}"


class _GrantTokens:
    """A TokenSource of a calendar that is deleted: nothing is kept."""

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


def _renewal_in(expires_at: datetime) -> timedelta:
    """Spread, so that channels opened together are not renewed together. An end that has passed is no end."""
    life = max((expires_at - utcnow()).total_seconds(), _SHORTEST_LIFE_SECONDS)
    return timedelta(seconds=spread(life, _RENEW_AT))


def _retry_in(err: ProviderError, failures: int) -> timedelta:
    retry_after = err.retry_after if isinstance(err, Transient) else None
    return timedelta(seconds=_BACKOFF.delay(failures, retry_after=retry_after))
