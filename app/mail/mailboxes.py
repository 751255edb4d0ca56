"""The mailboxes that a user may use, as Messages tells them; kept for a minute."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.addresses import fold_address, same_address
from app.core.http import httpx
from app.mail.client import MessagesClient, MessagesUnavailable
from app.settings import Settings

_KEPT_SECONDS = 60.0
_MOST_KEPT = 10_000
_MAY_SEND = frozenset({"sender", "admin"})


@dataclass(frozen=True, slots=True)
class Mailbox:
    """`role`: `viewer`, `editor`, `sender` or `admin`, of the user who was asked for; None if Messages told none."""

    mailbox_id: str
    email: str
    name: str | None
    role: str | None

    @property
    def can_send(self) -> bool:
        """Messages checks no user's role for a global key; we must.

        See docs/reference/messages.md, "Rights of users".
        """
        return self.role in _MAY_SEND


class Messages:
    """One for a process: the client, and its cache. `client` gives both endpoints without it."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient) -> None:
        self.client = MessagesClient(settings, client)
        self._kept: OrderedDict[str, tuple[float, list[Mailbox]]] = OrderedDict()

    @property
    def is_on(self) -> bool:
        return self.client.is_on

    async def list_mailboxes(self, user_email: str) -> list[Mailbox]:
        """The mailboxes that the user has access to, whatever the role; at most 60 seconds old.

        Raises MessagesOff, MessagesUnavailable, MessagesThrottled, MessagesRefused. A failure is never an empty
        list, and is not kept.
        """
        key = user_email.strip()
        kept = self._kept.get(key)
        if kept is not None and kept[0] > time.monotonic() and self.is_on:
            return list(kept[1])
        # Not kept before: two calls at once may both ask, which costs Messages 25 ms.
        found = await self.client.fetch_mailboxes(key)
        if not found and fold_address(key) != key:
            # Look-ups are case-sensitive: most users are known in lower case, some as their own server writes them.
            found = await self.client.fetch_mailboxes(fold_address(key))
        mailboxes = [_mailbox(item) for item in found]
        self._kept[key] = (time.monotonic() + _KEPT_SECONDS, mailboxes)
        self._kept.move_to_end(key)
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return list(mailboxes)

    async def own_mailbox(self, user_email: str) -> Mailbox | None:
        """The user's own: the one whose address is the user's, if the user may send from it. Raises as above."""
        mailboxes = await self.list_mailboxes(user_email)
        return next((box for box in mailboxes if box.can_send and same_address(box.email, user_email)), None)


def _mailbox(item: Any) -> Mailbox:
    if isinstance(item, Mapping):
        mailbox_id, email = item.get("id"), item.get("email")
        name, role = item.get("name"), item.get("role")
        # Not printable are line breaks and other controls, and halves of characters, which no answer can hold.
        if isinstance(mailbox_id, str) and isinstance(email, str) and (mailbox_id + email).isprintable():
            return Mailbox(
                mailbox_id,
                email,
                _printable(name) or None if isinstance(name, str) else None,
                role if isinstance(role, str) and role.isprintable() else None,
            )
    raise MessagesUnavailable("Messages answered with something that is not a list of mailboxes.")


def _printable(text: str) -> str:
    """On one line, without what is not printable."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
