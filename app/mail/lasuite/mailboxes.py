"""The mailboxes that a user has access to, cached for a minute."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.addresses import fold_address, same_address
from app.core.http import httpx
from app.mail.lasuite.client import MessagesClient
from app.mail.lasuite.errors import MessagesUnavailable
from app.settings import Settings

_CACHE_SECONDS = 60.0
_MAX_CACHED = 10_000
_MAY_SEND = frozenset({"sender", "admin"})


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox, with the user's role: `viewer`, `editor`, `sender` or `admin`; None if Messages has none."""

    mailbox_id: str
    email: str
    name: str | None
    role: str | None

    @property
    def can_send(self) -> bool:
        """Whether the user's role allows to send.

        Messages does not check roles (docs/reference/messages.md, "Rights of users").
        """
        return self.role in _MAY_SEND


class Messages:
    """The client of Messages with a cache of mailboxes, one for each process."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient) -> None:
        self.client = MessagesClient(settings, client)
        self._kept: OrderedDict[str, tuple[float, list[Mailbox]]] = OrderedDict()

    @property
    def is_on(self) -> bool:
        return self.client.is_on

    async def list_mailboxes(self, user_email: str) -> list[Mailbox]:
        """Return the mailboxes that the user has access to, with any role; at most 60 seconds old.

        Raises MessagesOff, MessagesUnavailable, MessagesThrottled, MessagesRefused. A failure is
        not cached, and never gives an empty list.
        """
        key = user_email.strip()
        kept = self._kept.get(key)
        if kept is not None and kept[0] > time.monotonic() and self.is_on:
            return list(kept[1])
        # Two calls at the same time may both send a request, which costs Messages 25 ms.
        found = await self.client.fetch_mailboxes(key)
        if not found and fold_address(key) != key:
            # Look-ups are case-sensitive: most users are known in lower case, some as their own server writes them.
            found = await self.client.fetch_mailboxes(fold_address(key))
        mailboxes = [_mailbox(item) for item in found]
        self._kept[key] = (time.monotonic() + _CACHE_SECONDS, mailboxes)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_CACHED:
            self._kept.popitem(last=False)
        return list(mailboxes)

    async def own_mailbox(self, user_email: str) -> Mailbox | None:
        """Return the mailbox with the user's address, if the user may send from it.

        Raises as `list_mailboxes` does.
        """
        mailboxes = await self.list_mailboxes(user_email)
        return next((box for box in mailboxes if box.can_send and same_address(box.email, user_email)), None)


def _mailbox(item: Any) -> Mailbox:
    if isinstance(item, Mapping):
        mailbox_id, email = item.get("id"), item.get("email")
        name, role = item.get("name"), item.get("role")
        # Control characters and lone surrogates cannot be returned in a response.
        if isinstance(mailbox_id, str) and isinstance(email, str) and (mailbox_id + email).isprintable():
            return Mailbox(
                mailbox_id,
                email,
                _printable(name) or None if isinstance(name, str) else None,
                role if isinstance(role, str) and role.isprintable() else None,
            )
    raise MessagesUnavailable("Messages returned something that is not a list of mailboxes.")


def _printable(text: str) -> str:
    """The text on one line, without characters that are not printable."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
