"""Errors of Graph, and what the parts of a request ask for; all parts of the fake Microsoft use it."""

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.ical.timezones import named_zone
from tests.fakes.microsoft_store import Preferences, Span

_LONGEST_WINDOW_DAYS = 1825
_PREFERENCE = re.compile(r'([\w.\-]+)\s*(?:=\s*("[^"]*"|[^",\s]+))?')


class GraphError(Exception):
    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "error": {
                "code": code,
                "message": message,
                "innerError": {
                    "date": "2026-11-20T10:00:00",
                    "request-id": str(uuid.uuid4()),
                    "client-request-id": str(uuid.uuid4()),
                },
            }
        }


def bad(message: str, code: str = "ErrorInvalidRequest") -> GraphError:
    return GraphError(400, code, message)


def not_found() -> GraphError:
    return GraphError(404, "ErrorItemNotFound", "The specified object was not found in the store.")


def json_response(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def param(request: Request, name: str) -> str | None:
    value = request.path_params.get(name)
    return None if value is None else unquote(value)


def preferences_of(request: Request) -> Preferences:
    asked = {
        name.lower(): value.strip('"')
        for header in request.headers.getlist("prefer")
        for name, value in _PREFERENCE.findall(header)
    }
    zone_name = asked.get("outlook.timezone", "UTC")
    if named_zone(zone_name) is None:
        raise bad(
            f"The following TimeZone value is not supported: '{zone_name}'.", "TimeZoneNotSupportedException"
        )
    size = asked.get("odata.maxpagesize", "")
    return Preferences(
        zone_name=zone_name,
        has_immutable_ids=asked.get("idtype") == "ImmutableId",
        body_type=asked.get("outlook.body-content-type", "html"),
        page_size=int(size) if size.isdigit() and int(size) > 0 else None,
    )


def applied(preferences: Preferences) -> str:
    applied = [f'outlook.timezone="{preferences.zone_name}"']
    if preferences.has_immutable_ids:
        applied.append('IdType="ImmutableId"')
    if preferences.page_size is not None:
        applied.append(f"odata.maxpagesize={preferences.page_size}")
    if preferences.body_type == "text":
        applied.append('outlook.body-content-type="text"')
    return ", ".join(applied)


def refuse_unknown(request: Request, known: set[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise bad(f"The query parameter '{name}' is not supported here.")


def integer(request: Request, name: str, default: int, *, most: int | None = None) -> int:
    value = request.query_params.get(name, str(default))
    if not value.isdigit() or (most is not None and not 1 <= int(value) <= most):
        raise bad(f"Invalid value '{value}' for {name} query option.")
    return int(value)


def select_of(request: Request, known: set[str]) -> set[str] | None:
    value = request.query_params.get("$select")
    if value is None:
        return None
    names = set(value.split(","))
    if unknown := sorted(names - known):
        text = f"Could not find a property named '{unknown[0]}' on type 'Microsoft.OutlookServices.Event'."
        raise bad(text, "RequestBroker--ParseUri")
    return names


def window_of(request: Request) -> Span:
    bounds = []
    for name in ("startDateTime", "endDateTime"):
        value = request.query_params.get(name)
        if not value:
            raise bad(f"This request requires a time window specified by the query string parameter {name}.")
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise bad(f"The value '{value}' of parameter '{name}' is invalid.") from None
        bounds.append(at.replace(tzinfo=at.tzinfo or UTC).timestamp())
    start, end = bounds
    if start > end:
        raise bad("The end of the window lies before its start.")
    if end - start > _LONGEST_WINDOW_DAYS * 86_400:
        text = "Requested time range is too long. Maximum number of days: 1825"
        raise bad(text)
    return start, end
