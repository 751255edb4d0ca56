"""Errors of writing hosted events."""

from app.core.errors import InvalidFields

_PROVIDERS = {"google": "Google", "microsoft": "Microsoft", "ics": "its iCal feed"}


class CalendarIsReadOnly(InvalidFields):
    """Calendar of a provider. `field` names the part of the request that refers to it."""

    def __init__(self, platform: str, *, field: str) -> None:
        sentence = (
            f"This is a {platform} calendar, and access to it is read-only: change its events at "
            f"{_PROVIDERS.get(platform, platform)}."
        )
        super().__init__({field: [sentence]})


class EventIsDeleted(InvalidFields):
    """Change of an event that was deleted."""

    def __init__(self) -> None:
        super().__init__({"non_field_errors": ["This event was deleted."]})


class SeriesIsOver(InvalidFields):
    """Series without an instance from now on: it would have no row."""

    def __init__(self) -> None:
        super().__init__({"recurrence": ["The series has no instance from now on."]})


class InstanceHasNoRule(InvalidFields):
    """Rule for a single instance of a series."""

    def __init__(self) -> None:
        sentence = "An instance has no rule: use ?scope=series to change the series."
        super().__init__({"recurrence": [sentence]})


class NoSender(InvalidFields):
    """Mails that cannot be sent. `has_mailbox`: the calendar has a sending identity."""

    def __init__(self, *, has_mailbox: bool) -> None:
        super().__init__({"send_invitations": [_INTEGRATION_OFF if has_mailbox else _NO_SMTP]})


_INTEGRATION_OFF = (
    "The calendar sends from a Messages mailbox, but FEATURE_MESSAGES_INTEGRATION is off. Turn it on, remove "
    "the calendar's sending_identity, or send send_invitations: false."
)
_NO_SMTP = (
    "There is no way to send invitations: the calendar has no sending_identity and SMTP_URL is not set. Give the "
    "calendar a mailbox, set SMTP_URL and EMAIL_FROM, or send send_invitations: false."
)
