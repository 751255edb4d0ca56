"""Errors and responses that all parts of the fake Google share."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response


class ApiError(Exception):
    def __init__(
        self, status: int, reason: str, message: str, *, domain: str = "global", location: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        entry = {"domain": domain, "reason": reason, "message": message}
        if location:
            entry |= {"locationType": "parameter", "location": location}
        self.body: dict[str, Any] = {"error": {"errors": [entry], "code": status, "message": message}}


class OAuthError(Exception):
    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, "error_description": description}


def bad(message: str, *, reason: str = "badRequest", location: str | None = None) -> ApiError:
    return ApiError(400, reason, message, location=location)


def expired() -> ApiError:
    text = "Sync token is no longer valid, a full sync is required."
    return ApiError(410, "fullSyncRequired", text, domain="calendar", location="syncToken")


def json_response(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


async def render_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError | OAuthError)
    return json_response(error.body, error.status)


def redirect(uri: str, query: Mapping[str, str]) -> Response:
    return RedirectResponse(f"{uri}{'&' if '?' in uri else '?'}{urlencode(query)}", 302)


def conditional(
    request: Request, etag: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Response:
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, media_type="application/json", headers={"ETag": etag, **(headers or {})})
