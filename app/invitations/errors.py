"""Errors of the log of mails."""

from app.core.errors import NotFound


class InvitationNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Invitation not found")
