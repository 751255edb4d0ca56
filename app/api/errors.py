"""Exception handlers, which render errors as JSON (docs/reference/http-api.md, "Errors")."""

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.api.middleware import takes_head
from app.api.openapi import methods_of_paths
from app.core.errors import AppError

log = structlog.get_logger()

_SENTENCES = {
    "missing": "This field is required.",
    "extra_forbidden": "Unknown field.",
    "string_type": "Not a string.",
    "int_type": "Not an integer.",
    "int_parsing": "Not an integer.",
    "bool_type": "Not a boolean.",
    "bool_parsing": "Not a boolean.",
    "float_type": "Not a number.",
    "float_parsing": "Not a number.",
    "finite_number": "Not a number.",
    "dict_type": "Not an object.",
    "list_type": "Not a list.",
    "model_attributes_type": "Not an object.",
    "model_type": "Not an object.",
    "datetime_from_date_parsing": "Not a date and time: use ISO 8601, for example 2026-01-31T09:00:00Z.",
    "datetime_parsing": "Not a date and time: use ISO 8601, for example 2026-01-31T09:00:00Z.",
    "datetime_type": "Not a date and time: use ISO 8601, for example 2026-01-31T09:00:00Z.",
}


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number


def _sentence(problem: dict[str, Any]) -> str:
    kind = problem["type"]
    context = problem.get("ctx", {})
    if kind in _SENTENCES:
        return _SENTENCES[kind]
    # After one of our validators, pydantic reports a text's length as `too_long`, too.
    if kind == "string_too_long" or (kind == "too_long" and isinstance(problem.get("input"), str)):
        return f"Longer than {context['max_length']} characters."
    if kind == "too_long":
        return f"More than {context['max_length']} items."
    if kind == "too_short":
        return f"Must have at least {context['min_length']} item{'s' if context['min_length'] > 1 else ''}."
    if kind == "greater_than_equal":
        return f"Must be at least {_plain(context['ge'])}."
    if kind == "less_than_equal":
        return f"Must be at most {_plain(context['le'])}."
    if kind == "literal_error":
        return f"Must be {context['expected']}."
    if kind == "string_too_short":
        return "This field may not be blank."
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message if message.endswith((".", "!", "?")) else message + "."


def _validation_response(err: RequestValidationError) -> tuple[int, dict[str, Any]]:
    fields: dict[str, list[str]] = {}
    for problem in err.errors():
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "whole_sentence":
            return 400, {"error": problem["msg"]}
        if location[0] in {"query", "path", "header", "cookie"}:
            unknown = problem["type"] == "extra_forbidden"
            sentence = "Unknown query parameter." if unknown else _sentence(problem)
            return 400, {"error": f"{'.'.join(location[1:]) or location[0]}: {sentence}"}
        if problem["type"] == "json_invalid":
            return 400, {"non_field_errors": ["The body is not valid JSON."]}
        if len(location) == 1:
            sentence = "Send a JSON object as the body, with Content-Type: application/json."
            fields.setdefault("non_field_errors", []).append(sentence)
            continue
        inner = ".".join(location[2:])
        text = _sentence(problem)
        sentences = fields.setdefault(location[1], [])
        sentence = f"{inner}: {text}" if inner else text
        if sentence not in sentences:
            sentences.append(sentence)
    return 400, fields


# Lock timeout, statement timeout, deadlock, serialization failure: a later request may succeed.
_BUSY = {"55P03", "57014", "40P01", "40001"}
# Insufficient resources: the disk or the memory is full, or there are too many connections.
_NO_ROOM = "53"
_UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeout, ConnectionError)


async def _on_app_error(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, AppError)
    return JSONResponse(err.body(), err.status_code, headers=err.headers())


async def _on_validation_error(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, RequestValidationError)
    status_code, body = _validation_response(err)
    return JSONResponse(body, status_code)


async def _on_http_exception(request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, HTTPException)
    if err.status_code == 405:
        allowed = _allowed_methods(request, (err.headers or {}).get("Allow", ""))
        return JSONResponse({"error": "Method not allowed"}, 405, headers={"Allow": allowed})
    if err.status_code == 400:
        return JSONResponse({"non_field_errors": ["The body is not valid JSON."]}, 400)
    detail = "Not found" if err.status_code == 404 else str(err.detail)
    return JSONResponse({"error": detail}, err.status_code, headers=err.headers)


def _allowed_methods(request: Request, named: str) -> str:
    """Return all methods of the path (RFC 9110, section 10.2.1).

    The framework has `named` those of one route only.
    """
    allowed = {method.strip() for method in named.split(",") if method.strip()}
    paths = methods_of_paths(request.app)
    path = next((path for path in paths if compile_path(path)[0].fullmatch(request.url.path)), None)
    if path is not None:
        allowed |= paths[path]
    if "GET" in allowed and takes_head(request.url.path):
        allowed.add("HEAD")
    return ", ".join(sorted(allowed))


async def _on_database_unavailable(_request: Request, err: Exception) -> JSONResponse:
    log.error(
        "database_unavailable",
        error=type(err).__name__,
        cause=type(err.__cause__).__name__,
        sqlstate=_sqlstate(err),
    )
    body = {"error": "The service is busy or restarting. Try again in a few seconds."}
    return JSONResponse(body, 503, headers={"Retry-After": "5"})


async def _on_database_error(request: Request, err: Exception) -> JSONResponse:
    if is_database_unavailable(err):
        return await _on_database_unavailable(request, err)
    raise err


def is_database_unavailable(err: Exception) -> bool:
    """Whether the database is restarting or busy, so that a later request may succeed."""
    if isinstance(err, _UNAVAILABLE):
        return True
    return isinstance(err, DBAPIError) and (
        err.connection_invalidated or _sqlstate(err) in _BUSY or _sqlstate(err).startswith(_NO_ROOM)
    )


def _sqlstate(err: Exception) -> str:
    """Return PostgreSQL's error code, or an empty string.

    Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return getattr(err.orig, "sqlstate", None) or "" if isinstance(err, DBAPIError) else ""


async def _on_bug(_request: Request, _err: Exception) -> JSONResponse:
    # The server logs the traceback.
    return JSONResponse(
        {"error": "Internal error. It has been logged; please report it to the operator."}, 500
    )


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(AppError, _on_app_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for error in _UNAVAILABLE:
        app.add_exception_handler(error, _on_database_unavailable)
    app.add_exception_handler(DBAPIError, _on_database_error)
    app.add_exception_handler(Exception, _on_bug)
