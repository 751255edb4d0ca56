"""What the push channels of the providers have in common (contract/providers.md A.9, B.7).

Besides the errors of app/providers/base.py:

    ProviderError
    ├── PushRefused      this calendar has no push: it is polled
    ├── ChannelExists    the provider holds an equal channel already
    └── ChannelUnknown      the provider does not know the channel (any more)
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
    """What the provider answered: its own ids where it gives any, and until when it will notify."""

    expires_at: datetime
    provider_id: str | None = None
    resource_id: str | None = None
