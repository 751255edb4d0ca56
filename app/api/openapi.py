"""The OpenAPI document, completed for linters and generators of clients."""

from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI

from app.api.schemas import without_null

_TAGS = {
    "calendars": "Connect calendars, read their state, and sync them.",
    "calendar events": "Read the events of all calendars, and write the events of calendars that are hosted here.",
    "changes": "Follow the changes of events by cursor, without a webhook.",
    "availability": "When calendars are busy, and when people can meet.",
    "bots": "Schedule meeting bots, which follow their event.",
    "join rules": "Rules that decide which events get a bot.",
    "webhooks": "Subscribe to changes, read the delivery log, and send deliveries again.",
    "oauth": "Let people connect their calendars in the browser.",
    "mailboxes": "Mailboxes of La Suite Messages that can send invitations.",
    "invitations": "Mails to the guests of hosted events.",
    "rsvp": "Guests' replies by mail.",
    "meeting urls": "Find the meeting link in a text.",
    "notifications": "Google and Microsoft send notifications of changes here. Your application does not need them.",
    "health": "Probes and metrics for the operator. They need no API key.",
}
# Pages for people. Linters refuse their final slash.
_PAGES = {"/rsvp/"}
_METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def install_openapi(app: FastAPI, *, server_url: str) -> None:
    """Make `app.openapi()` and /openapi.json return the completed document.

    The document's server is a relative address, since /docs may only call the server that it came from.
    """
    derive = app.openapi
    app.servers = [{"url": urlsplit(server_url).path.rstrip("/") or "/", "description": "This installation"}]

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = derive()
            app.state.methods_of_paths = _methods(document)
            _complete(document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def methods_of_paths(app: FastAPI) -> dict[str, set[str]]:
    """Return the methods of each path in capitals, including pages that the document leaves out."""
    app.openapi()
    methods: dict[str, set[str]] = app.state.methods_of_paths
    return methods


def package_version() -> str:
    return version("calbridge")


def _methods(document: dict[str, Any]) -> dict[str, set[str]]:
    return {path: {method.upper() for method in item} for path, item in document["paths"].items()}


def _complete(document: dict[str, Any]) -> None:
    for path in _PAGES:
        document["paths"].pop(path, None)
    for item in [*document["paths"].values(), *document["webhooks"].values()]:
        for method, operation in item.items():
            if method in _METHODS:
                # FastAPI documents a 422 for every operation with parameters. Here it is a 400.
                operation["responses"].pop("422", None)
                operation.setdefault("security", [])
                for parameter in operation.get("parameters", []):
                    parameter["schema"] = without_null(parameter["schema"])
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    used = {
        tag for item in document["paths"].values() for operation in item.values() for tag in operation["tags"]
    }
    document["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items() if name in used]
