"""Errors with their HTTP status and body, which app/api/errors.py renders.

AppError
├── InvalidFields   400 {"<field>": ["<sentence>"]}
├── BadQuery        400 {"error": "<sentence>"}
├── Unauthorized    401 {"detail": "<sentence>"}
├── NotFound        404 {"error": "Calendar not found"}
├── Conflict        409 {"error": "<sentence>"}
├── TooManyRequests 429 {"error": "<sentence>"}, Retry-After
├── BadGateway      502 {"error": "<sentence>"}
└── TryLater        503 {"error": "<sentence>"}, Retry-After
"""

from collections.abc import Mapping
from typing import Any


class AppError(Exception):
    status_code = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> dict[str, Any]:
        return {"error": self.message}

    def headers(self) -> dict[str, str]:
        return {}


class InvalidFields(AppError):
    """One or more fields of the body are wrong. `non_field_errors` stands for the whole body."""

    status_code = 400

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        super().__init__("; ".join(f"{name}: {' '.join(texts)}" for name, texts in fields.items()))
        self.fields = dict(fields)

    @classmethod
    def one(cls, field: str, sentence: str) -> "InvalidFields":
        return cls({field: [sentence]})

    def body(self) -> dict[str, Any]:
        return self.fields


class BadQuery(AppError):
    status_code = 400


class Unauthorized(AppError):
    status_code = 401

    def body(self) -> dict[str, Any]:
        return {"detail": self.message}

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Token"}


class NotFound(AppError):
    status_code = 404


class Conflict(AppError):
    status_code = 409


class TooManyRequests(AppError):
    status_code = 429

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)}


class BadGateway(AppError):
    status_code = 502


class TryLater(AppError):
    """A service that the request needs is unavailable for the moment: a later retry succeeds."""

    status_code = 503

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "60"}
