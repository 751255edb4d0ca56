"""Local calendars as their events need them: who organizes, and who sends the mails."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.invitations.service import Sender
from app.itip.event import Person
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class LocalCalendar:
    """Calendar of platform `local`. `identity`: {"mailbox_id", "email", "name"} or None."""

    calendar_id: str
    project_id: str
    owner_email: str
    owner_name: str | None
    timezone: str
    locale: str
    identity: dict[str, Any] | None
    deduplication_key: str | None
    metadata: dict[str, Any] | None
    state: str
    connection_failure_data: dict[str, Any] | None
    last_successful_sync_at: datetime | None
    last_attempted_sync_at: datetime | None

    @property
    def organizer(self) -> Person:
        """ORGANIZER of its events: the sending identity (RFC 5546), or without a mailbox the owner."""
        if self.identity is not None:
            return Person(email=self.identity["email"], name=self.identity["name"] or self.owner_name)
        return Person(email=self.owner_email, name=self.owner_name)

    @property
    def own_addresses(self) -> list[str]:
        """Addresses that are not invited to the calendar's own events."""
        return [self.owner_email, self.organizer.email]

    def sender(self, settings: Settings) -> Sender | None:
        """Return the sender of the calendar's mails; None if there is no way to send them.

        A calendar with a sending identity never falls back to another sender.
        """
        if self.identity is not None:
            if not settings.feature_messages_integration:
                return None
            return Sender(
                mailbox_id=self.identity["mailbox_id"],
                email=self.identity["email"],
                name=self.identity["name"] or self.owner_name,
                owner_email=self.owner_email,
            )
        if settings.smtp_sender is None:
            return None
        email, name = settings.smtp_sender
        return Sender(
            mailbox_id=None, email=email, name=self.owner_name or name, owner_email=self.owner_email
        )
