"""Errors for calendars and events that the caller does not have, shared by all features."""

from app.core.errors import NotFound


class CalendarNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Calendar not found")


class CalendarEventNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Calendar event not found")
