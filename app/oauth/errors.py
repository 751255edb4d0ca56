"""Errors of OAuth apps and sessions.

AppError (app/core/errors.py)
└── NotFound
    └── OAuthAppNotFound        404

StateRefused                    400, a page for the person
"""

from app.core.errors import NotFound


class OAuthAppNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("OAuth app not found")


class StateRefused(Exception):
    """The state is unknown, used, expired or of another platform. The browser is not redirected."""
