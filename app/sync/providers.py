"""The provider that serves a calendar: the one place that knows all of them."""

from collections import OrderedDict

from app.core.http import httpx
from app.credentials.budgets import Budgets, MeteredTokens
from app.credentials.store import CredentialStore
from app.meeting_urls.hosts import meeting_hosts
from app.outages.breakers import feed_scope
from app.providers.base import CalendarProvider, ClientMisconfigured, TokenSource
from app.providers.factory import account_calendar
from app.providers.ics.feed import IcsFeed
from app.providers.ics.readers import FeedReaders
from app.settings import Settings
from app.sync.repository import Claim, SyncState

_FEED_HOSTS_KEPT = 100_000


class ProviderFactory:
    """Creates the provider of a claimed calendar, and holds what providers share.

    `client`: for addresses that the operator set. `feeds`: for addresses that clients of the API chose.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        credentials: CredentialStore,
        budgets: Budgets,
        client: httpx.AsyncClient,
        feeds: httpx.AsyncClient,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._budgets = budgets
        self._client = client
        self._feeds = feeds
        self._hosts = meeting_hosts(settings)
        self._feed_readers = FeedReaders()
        self._feed_hosts: OrderedDict[str, str] = OrderedDict()

    def feed_host_of(self, calendar_id: str) -> str | None:
        """The host of a calendar's feed, if this process has synced it lately."""
        return self._feed_hosts.get(calendar_id)

    async def for_calendar(self, claim: Claim, state: SyncState) -> tuple[CalendarProvider, str]:
        """Create the provider of a calendar; returns it with the scope of its breaker.

        Raises ProviderError if the credentials cannot be used.
        """
        if state.credentials_id is None:
            raise ClientMisconfigured("The calendar has no credentials.", code="no_credentials")
        if claim.platform != "ics":
            account = account_calendar(
                settings=self._settings,
                client=self._client,
                tokens=self._tokens(claim, state),
                platform=claim.platform,
                calendar_id=state.platform_uuid,
                hosts=self._hosts,
            )
            return account, claim.platform
        feed_url = await self._credentials.load_feed_url(state.credentials_id)
        self._feed_hosts[claim.calendar_id] = httpx.URL(feed_url).host
        self._feed_hosts.move_to_end(claim.calendar_id)
        if len(self._feed_hosts) > _FEED_HOSTS_KEPT:
            self._feed_hosts.popitem(last=False)
        feed = IcsFeed(
            client=self._feeds,
            readers=self._feed_readers,
            project_id=claim.project_id,
            feed_url=feed_url,
            owner_email=state.owner_email,
            hosts=self._hosts,
            allow_http=self._settings.allows_http_feed(feed_url),
        )
        return feed, feed_scope(feed_url)

    async def aclose(self) -> None:
        """End the processes that parse feeds."""
        await self._feed_readers.aclose()

    def _tokens(self, claim: Claim, state: SyncState) -> TokenSource:
        assert state.credentials_id is not None
        return MeteredTokens(
            self._credentials.tokens(state.credentials_id),
            self._budgets,
            platform=claim.platform,
            account=state.owner_email or state.credentials_id,
            client_id=state.client_id or state.credentials_id,
        )
