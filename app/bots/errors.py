"""Errors of requests about bots, beyond the validation of single fields.

AppError (app/core/errors.py)
├── NotFound
│   └── BotNotFound             404
└── InvalidFields
    ├── DeduplicationKeyTaken   400 on `deduplication_key`
    └── BotNotScheduled         400, `non_field_errors`
"""

from app.core.errors import InvalidFields, NotFound


class BotNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Bot not found")


class DeduplicationKeyTaken(InvalidFields):
    def __init__(self) -> None:
        sentence = (
            "A bot with this deduplication key that is not finished already exists in this project. "
            "Use another key, or wait until that bot's meeting is over."
        )
        super().__init__({"deduplication_key": [sentence]})


class BotNotScheduled(InvalidFields):
    def __init__(self, state: str, sentence: str) -> None:
        super().__init__({"non_field_errors": [f"The bot is in state {state}: {sentence}"]})
