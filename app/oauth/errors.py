"""Errors of OAuth apps and sessions.

AppError (app/core/errors.py)
└── NotFound
    └── OAuthAppNotFound        404

StateRefused                    a page for the person; the browser is not redirected
"""

from app.core.errors import NotFound


class OAuthAppNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("OAuth app not found")


class StateRefused(Exception):
    """The state is unknown, used, expired or another platform's: the browser is not redirected."""
