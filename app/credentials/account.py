"""The account at the provider that has agreed, and the calendars that are read with it."""

from dataclasses import dataclass
from datetime import datetime

from app.core.addresses import same_address


@dataclass(frozen=True, slots=True)
class Account:
    """An account at a provider.

    `id`: the provider's own, which stays when the address changes. Both are None where they are not known.
    """

    id: str | None
    email: str | None

    def is_known_to_be(self, other: "Account") -> bool:
        """Whether both are one account. By the id; by the address only where an id is missing."""
        if self.id is not None and other.id is not None:
            return self.id == other.id
        return self.email is not None and other.email is not None and same_address(self.email, other.email)


@dataclass(frozen=True, slots=True)
class ConnectedCalendar:
    """A calendar, and what it is read with.

    `put_off_until`: the provider has asked not to be asked before; None if it has not.
    """

    calendar_id: str
    platform: str
    platform_uuid: str | None
    state: str
    credentials_id: str | None
    client_id: str | None
    owner_email: str | None
    put_off_until: datetime | None
