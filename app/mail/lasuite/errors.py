"""Errors of La Suite Messages. They say what happened to a request, and so whether it may be repeated.

MessagesOff          404  the integration is disabled
MessagesUnavailable  502  no connection, 5xx or a timeout; `may_be_taken`: the request was sent completely
MessagesThrottled    429  too many requests; `retry_after` in seconds
MessagesRefused      502  the key, the channel, a scope or the address is wrong, which the operator must fix
MailRefused          502  this mail can never be sent
"""

from app.core.errors import BadGateway, NotFound, TooManyRequests


class MessagesOff(NotFound):
    def __init__(self) -> None:
        super().__init__(
            "The Messages integration is off: set FEATURE_MESSAGES_INTEGRATION to use mailboxes."
        )


class MessagesUnavailable(BadGateway):
    """Messages is unavailable; the request was correct.

    `may_be_taken`: only the response is missing, so the request may have been carried out. `retry_after`: seconds that
    Messages asks to wait, 0 if it does not say.
    """

    def __init__(self, message: str, *, may_be_taken: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.may_be_taken = may_be_taken
        self.retry_after = retry_after


class MessagesThrottled(TooManyRequests):
    """Messages responded with 429; `retry_after` is from its response."""


class MessagesRefused(BadGateway):
    """The channel does not have the right; `status_code_there` is the status of Messages' response."""

    def __init__(self, message: str, *, status_code_there: int) -> None:
        super().__init__(message)
        self.status_code_there = status_code_there


class MailRefused(BadGateway):
    """Messages will never accept this mail from this mailbox; the message says why."""
