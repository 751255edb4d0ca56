"""Errors of reading iCalendar data."""


class CalendarUnreadable(Exception):
    """The text is not a calendar that can be read.

    `message` is a sentence for the user. `code` is one of `feed_empty`, `feed_not_ics`, `feed_truncated`,
    `feed_too_large` and `feed_too_complex`.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
