"""Errors of replies by mail."""

from app.core.errors import TryLater, Unauthorized


class InvalidWebhookToken(Unauthorized):
    def __init__(self, message: str = "The webhook's token is not valid.") -> None:
        super().__init__(message)


class LookupFailed(Exception):
    """The DNS did not respond: whether a mail is signed is not known yet."""


class SenderUnverifiable(TryLater):
    def __init__(self) -> None:
        super().__init__("The DNS of the sender's domain does not answer. Send the mail again later.")
