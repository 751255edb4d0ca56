"""Routes of the RSVP page.

GET and HEAD change nothing: scanners follow the links of mails, and some run scripts. The guest's click is a POST.
"""

from collections.abc import Callable, Coroutine
from ipaddress import ip_address, ip_network
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from limits import RateLimitItemPerMinute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from app.api.deps import AppState, DbReadSession, DbSession
from app.api.errors import is_database_unavailable
from app.api.languages import visitor_language
from app.api.schemas import ErrorAnswer
from app.core.ratelimit import RateLimiter
from app.rsvp import service
from app.rsvp.page import RsvpPage
from app.rsvp.rendering import render

PER_MINUTE = 60  # an office behind one address replies to an invitation within minutes
_LIMIT = RateLimitItemPerMinute(PER_MINUTE)
_RETRY_AFTER_SECONDS = 60
_MOST_FORM_BYTES = 16_384

_HTML = {"content": {"text/html": {"schema": {"type": "string"}}}}
_PAGES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The page", **_HTML},
    400: {"description": "A bad link", **_HTML},
    403: {"description": "No longer invited", **_HTML},
    410: {"description": "Cancelled, over or expired", **_HTML},
    413: {"description": "The form is too large", "model": ErrorAnswer},
    429: {"description": "Too many requests", **_HTML},
    503: {"description": "Busy or restarting", **_HTML},
}

log = structlog.get_logger()


class _PageRoute(APIRoute):
    """Shows guests an HTML page even if the database is unavailable, and not the API's JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def page_handler(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as err:
                if not is_database_unavailable(err):
                    raise
                log.error("rsvp_page_unavailable", error=type(err).__name__)  # noqa: TRY400 - a restart needs no traceback
                response = render(RsvpPage(kind="busy"), visitor_language(request))
                response.headers["Retry-After"] = "5"
                return response

        return page_handler


router = APIRouter(tags=["rsvp"], route_class=_PageRoute)


async def _is_within_limit(request: Request) -> bool:
    limiter: RateLimiter = request.app.state.rsvp_limiter
    return await limiter.hit(_LIMIT, _address(request))


@router.get("/rsvp/", operation_id="show_rsvp", response_class=Response, responses=_PAGES)
async def show_rsvp(
    request: Request, state: AppState, session: DbReadSession, token: str = "", action: str = ""
) -> Response:
    """Show the page of a link, with the buttons that reply. Nothing is changed."""
    if not await _is_within_limit(request):
        return _too_many(request)
    page = await service.show_page(session, state.settings, token, action)
    return render(page, visitor_language(request))


@router.post("/rsvp/", operation_id="answer_rsvp", response_class=Response, responses=_PAGES)
async def answer_rsvp(request: Request, state: AppState, session: DbSession) -> Response:
    """Record the reply of the form: `token` and `action`. The last reply counts.

    `when` names the times that the page showed. If the event has moved since, the page shows it anew and asks again.
    """
    if not await _is_within_limit(request):
        return _too_many(request)
    form = await _form(request)
    token, action, seen = form.get("token"), form.get("action"), form.get("when", "")
    if not isinstance(token, str) or not isinstance(action, str) or not isinstance(seen, str):
        return render(RsvpPage(kind="bad_link"), visitor_language(request))
    page = await service.record_click(session, state.settings, token, action, seen=seen)
    return render(page, visitor_language(request))


async def _form(request: Request) -> FormData:
    """Return the form; an empty one if it cannot be read."""
    if len(await request.body()) > _MOST_FORM_BYTES:
        return FormData()
    try:
        return await request.form(max_files=0, max_fields=10)
    except HTTPException:
        return FormData()


def _address(request: Request) -> str:
    """Return the address that requests are counted for.

    For IPv6 it is the /64 network, which belongs to one visitor.
    """
    host = request.client.host if request.client is not None else "unknown"
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((int(address) >> 64 << 64, 64)))


def _too_many(request: Request) -> Response:
    response = render(RsvpPage(kind="too_many"), visitor_language(request))
    response.headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
    return response
