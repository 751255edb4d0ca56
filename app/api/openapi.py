"""The OpenAPI document: what FastAPI derives from the code, completed so that linters and generators take it."""

from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI

from app.api.schemas import without_null

_TAGS = {
    "calendars": "Connect calendars, see their state, sync them now.",
    "calendar events": "Read the events of all calendars; write those of calendars that are hosted here.",
    "bots": "Schedule meeting bots. They follow their event.",
    "webhooks": "Subscribe to changes, see what was delivered, deliver it again.",
    "oauth": "Let people connect their calendar in the browser.",
    "mailboxes": "Mailboxes of La Suite Messages that invitations can be sent from.",
    "invitations": "Mails to the guests of hosted events.",
    "rsvp": "Guests' replies that arrive by mail.",
    "meeting urls": "Find the meeting link in a text.",
    "notifications": "Where Google and Microsoft report changes. Not for your application.",
    "health": "Probes and metrics for the operator. They take no API key.",
}
# For people in a browser, and with a final slash that linters refuse.
_PAGES = {"/rsvp/"}
_METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def install_openapi(app: FastAPI, *, server_url: str) -> None:
    """Makes `app.openapi()` and /openapi.json give the completed document.

    Its server is the one that the document came from, by whatever name it was asked: /docs may call no other.
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
    """The methods of each path, in capitals; also of paths for people, which the document leaves out."""
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
                # FastAPI documents its own 422 for all that has parameters; ours is a 400.
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
