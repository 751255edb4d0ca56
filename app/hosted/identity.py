"""Choose the mailbox that a local calendar sends from.

These functions use the network: never call them inside a transaction. See docs/reference/messages.md, "Rights of users".
"""

from typing import Any

from app.core.errors import InvalidFields
from app.mail.lasuite.mailboxes import Mailbox, Messages


async def default_identity(messages: Messages, owner_email: str) -> dict[str, Any] | None:
    """Return the mailbox with the owner's address; None if the owner may not send from it, or has none.

    Raises the errors of `Messages.list_mailboxes`: an outage does not count as "no mailbox".
    """
    if not messages.is_on:
        return None
    mailbox = await messages.own_mailbox(owner_email)
    return None if mailbox is None else _identity(mailbox)


async def chosen_identity(messages: Messages, owner_email: str, mailbox_id: str) -> dict[str, Any]:
    """Return the mailbox of this id.

    Raises InvalidFields if the owner may not send from it, and the errors of `Messages.list_mailboxes`.
    """
    if not messages.is_on:
        raise InvalidFields.one(
            "sending_identity", "The Messages integration is off: set FEATURE_MESSAGES_INTEGRATION first."
        )
    mailboxes = await messages.list_mailboxes(owner_email)
    mailbox = next((box for box in mailboxes if box.mailbox_id.lower() == mailbox_id.lower()), None)
    if mailbox is None:
        raise InvalidFields.one("sending_identity", f"{owner_email} has no access to a mailbox of this id.")
    if not mailbox.can_send:
        raise InvalidFields.one(
            "sending_identity",
            f"{owner_email} may not send from this mailbox: the role must be sender or admin, and is {mailbox.role}.",
        )
    return _identity(mailbox)


def _identity(mailbox: Mailbox) -> dict[str, Any]:
    return {"mailbox_id": mailbox.mailbox_id, "email": mailbox.email, "name": mailbox.name}
