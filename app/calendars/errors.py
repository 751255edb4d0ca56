"""Errors of requests about calendars.

AppError (app/core/errors.py)
├── BadQuery
│   └── CalendarNotSynced       (command line)
├── NotFound
│   └── CalendarNotFound        404 (app/api/not_found.py)
└── InvalidFields
    ├── DeduplicationKeyTaken   400 on `deduplication_key`
    └── CalendarDisconnected    400, `non_field_errors`
"""

from app.core.errors import BadQuery, InvalidFields


class DeduplicationKeyTaken(InvalidFields):
    def __init__(self) -> None:
        sentence = "A calendar with this deduplication key already exists in this project."
        super().__init__({"deduplication_key": [sentence]})


class CalendarDisconnected(InvalidFields):
    def __init__(self) -> None:
        sentence = (
            "The calendar is disconnected. PATCH it with new credentials: that reconnects and syncs it."
        )
        super().__init__({"non_field_errors": [sentence]})


class CalendarNotSynced(BadQuery):
    def __init__(self) -> None:
        super().__init__("A local calendar has no provider to sync from.")


class OtherAccount(Exception):
    """The person granted access to a different account than the one that the calendar is connected with."""


def no_such_field(platform: str) -> str:
    return f"A calendar of platform {platform} has no such field."
