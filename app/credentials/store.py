"""Access tokens: cached in the rows of credentials, and refreshed when they are about to expire.

An access token is cached, sealed, in its credentials' row until shortly before it expires, so that all workers
share it. One process refreshes at a time: it takes a lease on the row, asks the provider outside of any
transaction, and stores what came back (Microsoft's new refresh token too) under the row's lock before it
is used. If the application brought new credentials meanwhile, `version` has moved on and the response is dropped.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import func, or_, update

from app.core import metrics
from app.core.crypto import SealBroken, SecretBox
from app.core.db import Sessions, transaction
from app.core.http import httpx
from app.credentials.sealed import access_token_context, context_of, load_credentials_at
from app.models import Credentials
from app.outages.breakers import Breakers, client_scope
from app.providers.base import (
    ClientMisconfigured,
    CredentialsRevoked,
    FreshToken,
    NotAsked,
    ProviderError,
    Unavailable,
)
from app.providers.google import oauth as google_oauth
from app.providers.microsoft import oauth as microsoft_oauth
from app.settings import Settings

_LEASE_FOR = timedelta(seconds=30)
_REFRESH_WITHIN_SECONDS = 20
_WAIT_FOR_OTHER_SECONDS = 0.2
# Renewed this early, or at nine tenths of a short life.
_EARLY_SECONDS = 300


@dataclass(frozen=True, slots=True)
class _Row:
    project_id: str
    platform: Literal["google", "microsoft", "ics"]
    client_id: str | None
    version: int
    secrets: dict[str, Any]
    access_token: str | None


class CredentialsDeleted(ProviderError):
    """The credentials were deleted while they were in use: so was the calendar."""

    code = "credentials_gone"


class CredentialStore:
    """Opens credentials and refreshes access tokens; one per process."""

    def __init__(
        self,
        *,
        settings: Settings,
        sessions: Sessions,
        box: SecretBox,
        client: httpx.AsyncClient,
        breakers: Breakers | None = None,
    ) -> None:
        """With `breakers`, a client that the token endpoint refuses is tried by one refresh at a time."""
        self._breakers = breakers
        self._settings = settings
        self._sessions = sessions
        self._box = box
        self._client = client

    def tokens(self, credentials_id: str) -> "CredentialTokens":
        return CredentialTokens(self, credentials_id)

    async def load_feed_url(self, credentials_id: str) -> str:
        """The secret address of a feed. Raises CredentialsDeleted, ClientMisconfigured."""
        row, _ = await self._load(credentials_id)
        feed_url: str = row.secrets["feed_url"]
        return feed_url

    async def access_token(self, credentials_id: str, rejected: str | None) -> str:
        while True:
            row, leased = await self._load(credentials_id, lease_unless_cached=True, rejected=rejected)
            if row.access_token is not None:
                return row.access_token
            if leased:
                return await self._refresh(credentials_id, row)
            await asyncio.sleep(_WAIT_FOR_OTHER_SECONDS)

    async def _load(
        self, credentials_id: str, *, lease_unless_cached: bool = False, rejected: str | None = None
    ) -> tuple[_Row, bool]:
        """The row, opened, and whether this call now holds the refresh lease."""
        async with transaction(self._sessions) as session:
            try:
                found = await load_credentials_at(session, self._box, credentials_id)
                if found is None:
                    raise CredentialsDeleted("The credentials were deleted.")
                stored, secrets, now = found
                row = self._open(stored, secrets)
            except SealBroken as err:
                raise ClientMisconfigured(str(err), code="seal_broken") from None
            if row.access_token is not None and (_expired(stored, now) or row.access_token == rejected):
                row = replace(row, access_token=None)
            if row.access_token is not None or not lease_unless_cached:
                return row, False
            leased = await session.scalar(
                update(Credentials)
                .where(
                    Credentials.id == credentials_id,
                    Credentials.version == row.version,
                    # Another process may have refreshed since the row was read above.
                    Credentials.access_token_sealed.is_not_distinct_from(stored.access_token_sealed),
                    or_(
                        Credentials.refresh_lease_until.is_(None),
                        Credentials.refresh_lease_until < func.clock_timestamp(),
                    ),
                )
                .values(refresh_lease_until=func.clock_timestamp() + _LEASE_FOR)
                .returning(Credentials.id)
                .execution_options(synchronize_session=False)
            )
            return row, leased is not None

    def _open(self, stored: Credentials, secrets: dict[str, Any]) -> _Row:
        """A cached access token that no key opens counts as none: there are new ones."""
        token = None
        if stored.access_token_sealed is not None:
            with suppress(SealBroken):
                token = self._box.open(access_token_context(stored.id), stored.access_token_sealed)
        return _Row(stored.project_id, stored.platform, stored.client_id, stored.version, secrets, token)  # type: ignore[arg-type] # checked by the table

    async def _refresh(self, credentials_id: str, row: _Row) -> str:
        outcome = "ok"
        try:
            async with asyncio.timeout(_REFRESH_WITHIN_SECONDS):
                fresh = await self._ask_guarded(row)
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable("The provider's token endpoint did not respond in time.") from None
        except ProviderError as err:
            outcome = err.code
            raise
        finally:
            metrics.TOKEN_REFRESHES.labels(row.platform, outcome).inc()
            if outcome != "ok":
                await self._release(credentials_id, row.version)
        if await self._store(credentials_id, row, fresh):
            return fresh.access_token
        # New credentials came while the old ones were being used: start over with those.
        return await self.access_token(credentials_id, None)

    async def _ask_guarded(self, row: _Row) -> FreshToken:
        """`_ask_provider` through the client's breaker. Raises NotAsked while that is open."""
        if self._breakers is None or row.client_id is None:
            return await self._ask_provider(row)
        scope = client_scope(row.project_id, row.client_id)
        may_go_on, is_probe = await self._breakers.enter(scope, row.project_id)
        if not may_go_on:
            raise NotAsked(
                "The OAuth client is refused: check client_id and client_secret.",
                code="client_held",
                retry_after=self._settings.calendar_sync_interval_seconds,
                scope=scope,
            )
        try:
            fresh = await self._ask_provider(row)
        except ClientMisconfigured as err:
            err.scope = scope
            if is_probe:
                await self._breakers.end_probe(scope)
            else:
                await self._breakers.vote_failing(scope, row.project_id)
            raise
        except ProviderError:
            if is_probe:
                await self._breakers.end_probe(scope)
            raise
        if is_probe:
            await self._breakers.close(scope)
        else:
            await self._breakers.vote_fine(scope, row.project_id)
        return fresh

    async def _ask_provider(self, row: _Row) -> FreshToken:
        refresh, token_url = self._refresher(row)
        refresh_token = row.secrets.get("refresh_token")
        if not refresh_token:
            raise CredentialsRevoked(
                "No refresh token is stored.", code="refresh_token_missing", is_final=True
            )
        return await refresh(
            self._client,
            token_url=token_url,
            client_id=row.client_id or "",
            client_secret=row.secrets["client_secret"],
            refresh_token=refresh_token,
        )

    def _refresher(self, row: _Row) -> tuple[Callable[..., Awaitable[FreshToken]], str]:
        if row.platform == "google":
            return google_oauth.refresh_access_token, self._settings.google_oauth_token_url
        if row.platform == "microsoft":
            return microsoft_oauth.refresh_access_token, self._settings.microsoft_oauth_token_url
        raise ClientMisconfigured(f"{row.platform} calendars have no access tokens.", code="no_tokens")

    async def _store(self, credentials_id: str, row: _Row, fresh: FreshToken) -> bool:
        """Whether the credentials were still those that were refreshed."""
        early = min(_EARLY_SECONDS, fresh.expires_in / 10)
        values: dict[str, Any] = {
            "access_token_sealed": self._box.seal(access_token_context(credentials_id), fresh.access_token),
            "access_token_expires_at": (func.clock_timestamp() + timedelta(seconds=fresh.expires_in - early)),
            "refresh_lease_until": None,
        }
        if fresh.refresh_token and fresh.refresh_token != row.secrets["refresh_token"]:
            secrets = {**row.secrets, "refresh_token": fresh.refresh_token}
            values["sealed"] = self._box.seal(context_of(credentials_id), secrets)
        return await self._update(credentials_id, row.version, values)

    async def _release(self, credentials_id: str, version: int) -> None:
        await self._update(credentials_id, version, {"refresh_lease_until": None})

    async def _update(self, credentials_id: str, version: int, values: dict[str, Any]) -> bool:
        async with transaction(self._sessions) as session:
            found = await session.scalar(
                update(Credentials)
                .where(Credentials.id == credentials_id, Credentials.version == version)
                .values(**values)
                .returning(Credentials.id)
            )
        return found is not None


def _expired(stored: Credentials, now: datetime) -> bool:
    expires_at: datetime | None = stored.access_token_expires_at
    return expires_at is None or expires_at <= now


class CredentialTokens:
    """A TokenSource (app/providers/base.py) for one row of credentials, for the length of one sync."""

    def __init__(self, store: CredentialStore, credentials_id: str) -> None:
        self._store = store
        self._credentials_id = credentials_id
        self._token: str | None = None

    async def get(self, *, rejected: str | None = None) -> str:
        # A sync that outlives its token gets a 401 from the provider, and asks with `rejected`.
        if self._token is None or self._token == rejected:
            self._token = await self._store.access_token(self._credentials_id, rejected)
        return self._token
