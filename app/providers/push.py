"""What the push channels of the providers have in common (contract/providers.md A.9, B.7).

Besides the errors of app/providers/base.py:

    ProviderError
    ├── PushRefused      this calendar has no push: it is polled
    ├── ChannelExists    the provider holds an equal channel already
    └── ChannelGone      the provider does not know the channel (any more)
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from app.providers.base import ProviderError, TokenSource
from app.providers.wire import Answer

MAX_BODY_BYTES = 1024 * 1024


class PushRefused(ProviderError):
    code = "push_refused"


class ChannelExists(ProviderError):
    code = "channel_exists"


class ChannelGone(ProviderError):
    code = "channel_gone"


@dataclass(frozen=True, slots=True)
class OpenedChannel:
    """What the provider answered: its own ids where it gives any, and until when it will notify."""

    expires_at: datetime
    provider_id: str | None = None
    resource_id: str | None = None


async def send_authorized(
    tokens: TokenSource,
    send: Callable[[str], Awaitable[Answer]],
    *,
    is_about_token: Callable[[Answer], bool] = lambda answer: answer.status == 401,
) -> Answer:
    """The answer to `send(token)`; once more with a fresh token where the provider does not accept the first."""
    token = await tokens.get()
    answer = await send(token)
    if is_about_token(answer):
        answer = await send(await tokens.get(rejected=token))
    return answer
