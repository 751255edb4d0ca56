"""Errors of requests about free/busy times and availability.

AppError (app/core/errors.py)
└── NotFound
    └── Unknown     404, naming the calendar or event
"""

from app.core.errors import NotFound

_SHOWN = 100


class Unknown(NotFound):
    """The project has no such calendar or event."""

    def __init__(self, kind: str, name: str) -> None:
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        super().__init__(f"{kind} not found: {shown}")
