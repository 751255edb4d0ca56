"""Errors of replies by mail."""

from app.core.errors import TryLater, Unauthorized


class InvalidWebhookToken(Unauthorized):
    """Token of a webhook that is not valid, or not for this mail."""

    def __init__(self, message: str = "The webhook's token is not valid.") -> None:
        super().__init__(message)


class LookupFailed(Exception):
    """DNS query without a response: whether a mail is signed is not known yet."""


class SenderUnverifiable(TryLater):
    """Mail whose sender cannot be verified for the moment."""

    def __init__(self) -> None:
        super().__init__("The DNS of the sender's domain does not respond. Send the mail again later.")
