"""Request budgets of the providers, shared by all workers through Redis.

Google allows 600 requests a minute for a user, and 10,000 a minute for a project, here the OAuth client
(docs/reference/google.md, "Quotas"). Graph allows 10,000 in ten minutes for an app and mailbox
(docs/reference/microsoft.md, "Throttling"). A budget is kept below its limit, since windows are counted approximately.
While Redis is unavailable each process counts for itself; the providers' own 429 counts always.
"""

from limits import RateLimitItem, RateLimitItemPerMinute

from app.core.ratelimit import RateLimiter
from app.providers.base import NotAsked, TokenSource

_SHARE = 0.9

_USER: dict[str, RateLimitItem] = {
    "google": RateLimitItemPerMinute(int(600 * _SHARE)),
    "microsoft": RateLimitItemPerMinute(int(10_000 * _SHARE), 10),
}
# What requests of the API may take of it, so that syncs go on: of an account, and for a project.
_LIVE_SHARE = 0.2
_LIVE: dict[str, RateLimitItem] = {
    "google": RateLimitItemPerMinute(int(600 * _LIVE_SHARE)),
    "microsoft": RateLimitItemPerMinute(int(10_000 * _LIVE_SHARE), 10),
}
_LIVE_OF_PROJECT = RateLimitItemPerMinute(1_000)
_CLIENT: dict[str, RateLimitItem] = {"google": RateLimitItemPerMinute(int(10_000 * _SHARE))}


class Budgets:
    """Counts requests to providers; one per process."""

    def __init__(self, redis_url: str) -> None:
        self._limiter = RateLimiter(redis_url, prefix="budgets")

    async def spend(self, platform: str, account: str, client_id: str) -> None:
        """Spend one request of an account and an OAuth client. Raises NotAsked if a budget is used up."""
        for item, keys in (
            (_USER.get(platform), (client_id, account.lower())),
            (_CLIENT.get(platform), (client_id,)),
        ):
            if item is not None and not await self._limiter.hit(item, platform, *keys):
                raise NotAsked(
                    "The request budget of this account or OAuth client is used up.",
                    code="budget_spent",
                    retry_after=item.get_expiry() / 4,
                )

    async def spend_live(self, platform: str, account: str, client_id: str, project_id: str) -> None:
        """Spend one request on behalf of a waiting request of the API. Raises NotAsked.

        The caller spends it from the account's budget too.
        """
        for item, keys in (
            (_LIVE.get(platform), (platform, client_id, account.lower())),
            (_LIVE_OF_PROJECT, (project_id,)),
        ):
            if item is not None and not await self._limiter.hit(item, "live", *keys):
                raise NotAsked(
                    "Too many live requests for this account or project: try again in a minute.",
                    code="budget_spent",
                )

    async def aclose(self) -> None:
        await self._limiter.aclose()


class MeteredTokens:
    """A TokenSource that spends one request of the budget per call. Providers call it for each request.

    `account`: the address of its owner, so that one connected twice has one budget; where it is not known, what
    stands for the credentials.
    """

    def __init__(
        self,
        tokens: TokenSource,
        budgets: Budgets,
        *,
        platform: str,
        account: str,
        client_id: str,
        live_of: str | None = None,
    ) -> None:
        """`live_of`: the project whose request waits for it; None for syncs."""
        self._tokens = tokens
        self._budgets = budgets
        self._of = (platform, account, client_id)
        self._live_of = live_of

    async def get(self, *, rejected: str | None = None) -> str:
        if self._live_of is not None:
            await self._budgets.spend_live(*self._of, self._live_of)
        await self._budgets.spend(*self._of)
        return await self._tokens.get(rejected=rejected)
