"""Errors of following changes.

AppError
├── BadQuery
│   └── BadCursor      400
└── TooManyRequests
    └── TooManyWaiting 429
"""

from app.core.errors import BadQuery, TooManyRequests

_RETRY_AFTER_SECONDS = 10


class BadCursor(BadQuery):
    def __init__(self) -> None:
        super().__init__(
            "The cursor was not made for this project and this calendar_id. Use a next_cursor of the same calls, "
            "or start again without a cursor."
        )


class TooManyWaiting(TooManyRequests):
    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, retry_after=_RETRY_AFTER_SECONDS)
