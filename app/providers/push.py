"""Types and errors that the push channels of both providers share.

See docs/reference/google.md, "Push channels", and docs/reference/microsoft.md, "Subscriptions".

Besides the errors of app/providers/base.py:

    ProviderError
    ├── PushRefused      this calendar has no push: it is polled
    ├── ChannelExists    the provider holds an equal channel already
    └── ChannelUnknown   the provider does not know the channel (any more)
"""

from dataclasses import dataclass
from datetime import datetime

from app.providers.base import ProviderError

MAX_BODY_BYTES = 1024 * 1024


class PushRefused(ProviderError):
    code = "push_refused"


class ChannelExists(ProviderError):
    code = "channel_exists"


class ChannelUnknown(ProviderError):
    code = "channel_gone"


@dataclass(frozen=True, slots=True)
class OpenedChannel:
    """An open channel: the provider's own ids, if there are any, and the time at which it expires."""

    expires_at: datetime
    provider_id: str | None = None
    resource_id: str | None = None
