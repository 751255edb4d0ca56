"""Errors of requests about join rules, beyond the validation of single fields.

AppError (app/core/errors.py)
├── NotFound
│   └── NoOwnRules          404
└── InvalidFields
    └── NoBotToTake         400 on `policy`
"""

from app.core.errors import InvalidFields, NotFound


class NoOwnRules(NotFound):
    def __init__(self) -> None:
        super().__init__("This calendar has no join rules of its own: the project's apply.")


class NoBotToTake(InvalidFields):
    def __init__(self) -> None:
        sentence = "No join rule of this calendar or project has a bot that could join. Set join rules first."
        super().__init__({"policy": [sentence]})
