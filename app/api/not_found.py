"""Errors for calendars and events that do not exist in the caller's project, shared by all features."""

from app.core.errors import NotFound


class CalendarNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Calendar not found")


class CalendarEventNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Calendar event not found")
