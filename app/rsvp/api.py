"""The RSVP page, and the address that mailed replies are posted to (contract 8).

GET and HEAD change nothing, and there is no script: scanners follow links, and some run scripts. The click POSTs.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Request, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from app.api.deps import AppState, DbReadSession, DbSession, State, find_project_id
from app.api.errors import is_database_unavailable
from app.api.languages import visitor_language
from app.api.schemas import ErrorAnswer, responses
from app.core import metrics
from app.core.errors import Unauthorized
from app.core.languages import Language
from app.hosted.service import Hosting, organizer_of
from app.mail.rendering import repeats_text, when_text
from app.rsvp import service
from app.rsvp.limits import RETRY_AFTER_SECONDS, RsvpLimiter
from app.rsvp.schemas import ACTIONS, STATUS_CODES, Action, InboundAnswer, Page, ignored
from app.rsvp.senders import SenderKeys
from app.rsvp.service import Source, Verdict, read_webhook_token
from app.rsvp.texts import TEXTS

# What Messages takes as one mail, and a bit: a reply may quote the invitation with all of its attachments.
_LONGEST_MAIL = 25 * 1024 * 1024
# Larger ones are not read, but answered by the route itself: Messages would take a 413 for a fault that passes.
inbound_router = APIRouter(tags=["rsvp"], max_body_size=1024 * 1024 * 1024)
_STATIC_KEY_PREFIX = "whk_"

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
_MOST_FORM_BYTES = 16_384

log = structlog.get_logger()


class _PageRoute(APIRoute):
    """People see a page of their own even if the database is away, and not an answer for programs."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def page_handler(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as err:
                if not is_database_unavailable(err):
                    raise
                log.error("rsvp_page_unavailable", error=type(err).__name__)  # noqa: TRY400 - a restart needs no traceback
                response = _render(Page(kind="busy"), visitor_language(request))
                response.headers["Retry-After"] = "5"
                return response

        return page_handler


router = APIRouter(tags=["rsvp"], route_class=_PageRoute)


def _limiter(request: Request) -> RsvpLimiter:
    limiter: RsvpLimiter = request.app.state.rsvp_limiter
    return limiter


@router.get("/rsvp/", operation_id="show_rsvp", response_class=Response, responses=_PAGES)
async def show_rsvp(
    request: Request, state: AppState, session: DbReadSession, token: str = "", action: str = ""
) -> Response:
    """What will be answered, and the button that answers it. Changes nothing."""
    if not await _limiter(request).allows(_address(request)):
        return _too_many(request)
    page = await service.show(session, Hosting(state.settings), token, action)
    return _render(page, visitor_language(request))


@router.post("/rsvp/", operation_id="answer_rsvp", response_class=Response, responses=_PAGES)
async def answer_rsvp(request: Request, state: AppState, session: DbSession) -> Response:
    """Records the answer of the form: `token` and `action`. The last answer wins.

    `when` is that of the event which the page showed: if it was moved since, the page shows it anew and asks again.
    """
    if not await _limiter(request).allows(_address(request)):
        return _too_many(request)
    form = await _form(request)
    token, action, seen = form.get("token"), form.get("action"), form.get("when", "")
    if not isinstance(token, str) or not isinstance(action, str) or not isinstance(seen, str):
        return _render(Page(kind="bad_link"), visitor_language(request))
    page = await service.answer(session, Hosting(state.settings), token, action, seen=seen)
    return _render(page, visitor_language(request))


@inbound_router.post(
    "/api/v1/rsvp/inbound",
    operation_id="receive_rsvp_mail",
    responses=responses(413, 415),
    openapi_extra={
        "requestBody": {
            "content": {
                "message/rfc822": {"schema": {"type": "string", "format": "binary"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "security": [{"ApiKey": []}],
    },
)
async def receive_rsvp_mail(
    *,
    request: Request,
    state: AppState,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    x_stmsg_mailbox: Annotated[str | None, Header(description="The mailbox that received the mail.")] = None,
    x_stmsg_is_spam: Annotated[
        str | None, Header(description="`false`, or the mail is ignored. With an API key it may be left out.")
    ] = None,
    x_stmsg_sender_auth: Annotated[
        str | None,
        Header(
            description=(
                "Your verdict on the sender: `pass`, `none` (could not be verified) or `fail` (looks forged). "
                "Mails with the last two are ignored. Left out, your API key says that you trust the mail."
            )
        ),
    ] = None,
) -> InboundAnswer:
    """A mail with a calendar reply (METHOD:REPLY), raw. Updates the attendee; what does not count is ignored.

    For the webhook of Messages (`Authorization: Bearer <JWT>`, with MESSAGES_WEBHOOK_SECRET), or with an API key.
    """
    source = replace(
        await _source(state, authorization, x_stmsg_mailbox), verdict=_verdict(x_stmsg_sender_auth)
    )
    is_spam = _is_spam(x_stmsg_is_spam)
    if x_stmsg_is_spam is None and source.project_id is not None:
        is_spam = False
    source = replace(source, is_spam=is_spam)
    taken = await _take_in(request, state, source)
    outcome = taken.code or taken.status
    by = "messages" if source.project_id is None else "api_key"
    metrics.INBOUND_REPLIES.labels(by, outcome).inc()
    # A webhook of all mailboxes brings every mail that arrives: only those with a reply are worth a line.
    write = log.debug if outcome == "no_reply" else log.info
    write("inbound_reply", source=by, outcome=outcome)
    return taken


async def _take_in(request: Request, state: State, source: Source) -> InboundAnswer:
    """To Messages everything that no retry would mend is a 200: it holds a mail until it gets one, for two days."""
    is_messages = source.project_id is None
    if "json" in request.headers.get("content-type", "").lower():
        if not is_messages:
            raise HTTPException(415, "Send the raw mail as message/rfc822; JSON is not read.")
        return ignored("wrong_format")
    mail = await _read(request)
    if mail is None:
        if not is_messages:
            raise HTTPException(413, "The body is too large.")
        return ignored("too_large")
    keys: SenderKeys = request.app.state.sender_keys
    return await service.take_in(state.sessions, Hosting(state.settings), keys, source, mail)


async def _read(request: Request) -> bytes | None:
    """The whole mail; None where it is too large."""
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > _LONGEST_MAIL:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _is_spam(text: str | None) -> bool | None:
    """Of the header; None where it says nothing, such as `pending`."""
    word = (text or "").strip().lower()
    return False if word == "false" else True if word in {"true", "1", "yes"} else None


def _verdict(text: str | None) -> Verdict | None:
    """Of the header. An unknown word is no good one."""
    if text is None:
        return None
    word = text.strip().lower()
    if word == "pass":
        return "pass"
    return "fail" if word == "fail" else "none"


async def _source(state: State, authorization: str | None, mailbox: str | None) -> Source:
    """Before the body is read. Raises Unauthorized."""
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    is_static = token.startswith(_STATIC_KEY_PREFIX)
    if scheme.lower() != "bearer" or not (is_static or token.count(".") == 2):
        project_id = await find_project_id(state, authorization)
        return Source(project_id=project_id, mailbox=mailbox)
    secrets = state.settings.webhook_secrets
    if not secrets:
        raise Unauthorized("MESSAGES_WEBHOOK_SECRET is not set: use a project's API key.")
    if is_static:
        # The channel's auth_method api_key: it says nothing of the mail, so the header names the mailbox.
        if not any([hmac.compare_digest(token.encode(), secret.encode()) for secret in secrets]):  # noqa: C419 - all of them, in constant time
            raise Unauthorized("The webhook's key is not valid.")
        if not mailbox:
            raise Unauthorized("X-StMsg-Mailbox does not name the mailbox.")
        return Source(project_id=None, mailbox=mailbox)
    keys = [secret for secret in secrets if not secret.startswith(_STATIC_KEY_PREFIX)]
    mailbox, digest = read_webhook_token(token, keys)
    return Source(project_id=None, mailbox=mailbox, body_sha256=digest)


async def _form(request: Request) -> FormData:
    """The form; an empty one where it cannot be read."""
    if len(await request.body()) > _MOST_FORM_BYTES:
        return FormData()
    try:
        return await request.form(max_files=0, max_fields=10)
    except HTTPException:
        return FormData()


def _address(request: Request) -> str:
    """Whom requests are counted for; of IPv6 the network, of which one visitor has all addresses."""
    host = request.client.host if request.client is not None else "unknown"
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((int(address) >> 64 << 64, 64)))


def _too_many(request: Request) -> Response:
    response = _render(Page(kind="too_many"), visitor_language(request))
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("app.rsvp"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
    )


@lru_cache(maxsize=1)
def _css() -> str:
    return _environment().get_template("rsvp.css").render()


@lru_cache(maxsize=1)
def _headers() -> dict[str, str]:
    digest = base64.b64encode(hashlib.sha256(_css().encode()).digest()).decode()
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "X-Robots-Tag": "noindex, nofollow",
        "Cache-Control": "no-store",
        "Vary": "Accept-Language",
    }


def _render(page: Page, language: Language) -> Response:
    t = TEXTS[language]
    message = t["messages"].get(page.kind)
    if page.kind == "done":
        message = t["change"]
    elif page.has_changed:
        message = t["changed"]
    html = (
        _environment()
        .get_template("rsvp.html")
        .render(
            language=language,
            t=t,
            title=t["titles"][page.kind],
            css=Markup(_css()),  # noqa: S704 - our own file
            message=message,
            is_news=page.kind == "done" or page.has_changed,
            event=_event(page, language),
            form=_form_of(page, language) if page.kind in {"ask", "done"} else None,
        )
    )
    return Response(html, STATUS_CODES[page.kind], media_type="text/html; charset=utf-8", headers=_headers())


def _event(page: Page, language: Language) -> dict[str, Any] | None:
    if page.component is None or page.attendee is None or page.calendar is None:
        return None
    organizer = organizer_of(page.calendar)
    event = page.component.for_mail(organizer)
    attendee = page.attendee
    return {
        "name": event.name,
        "when": when_text(event, language),
        "repeats": repeats_text(event, language),
        "location": event.location,
        "organizer": f"{organizer.name} ({organizer.email})" if organizer.name else organizer.email,
        "attendee": f"{attendee.name} ({attendee.email})" if attendee.name else attendee.email,
        "current": TEXTS[language]["answers"][attendee.response_status],
    }


def _form_of(page: Page, language: Language) -> dict[str, Any]:
    t = TEXTS[language]

    def choice(action: Action) -> dict[str, str]:
        return {"action": action, "label": t["buttons"][action]}

    if page.kind == "done":
        question, legend = "", t["change_legend"]
    elif page.action is not None:
        question, legend = t["question"].format(answer=t["answers"][page.action]), t["other"]
    else:
        question, legend = t["choose"], t["choose_legend"]
    current = page.attendee.response_status if page.kind == "done" and page.attendee is not None else None
    return {
        "token": page.token,
        "when": page.component.when if page.component is not None else "",
        "question": question,
        "legend": legend,
        "main": choice(page.action) if page.action is not None else None,
        "others": [choice(action) for action in ACTIONS if action not in {page.action, current}],
    }
