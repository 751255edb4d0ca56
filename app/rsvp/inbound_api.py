"""Route that takes replies by mail, from La Suite Messages or an application."""

import hmac
from dataclasses import replace
from typing import Annotated

import structlog
from fastapi import APIRouter, Header, Request
from starlette.exceptions import HTTPException

from app.api.deps import AppState, State, find_project_id
from app.api.schemas import responses
from app.core import metrics
from app.core.errors import Unauthorized
from app.rsvp.inbound import Source, Verdict, ingest_reply, read_webhook_token
from app.rsvp.schemas import InboundAnswer, ignored
from app.rsvp.senders import SenderKeys

# The largest mail that Messages takes, and a bit: a reply may quote the invitation with all of its attachments.
_LONGEST_MAIL = 25 * 1024 * 1024
# The route responds to larger mails itself: Messages would take a 413 for a fault that passes.
router = APIRouter(tags=["rsvp"], max_body_size=1024 * 1024 * 1024)
_STATIC_KEY_PREFIX = "whk_"

log = structlog.get_logger()


@router.post(
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
                "Mails with the last two are ignored. Without it, your API key says that you trust the mail."
            )
        ),
    ] = None,
) -> InboundAnswer:
    """Update the attendee with a calendar reply (METHOD:REPLY), sent as a raw mail.

    Other mails are ignored. For the webhook of Messages (`Authorization: Bearer <JWT>`, with
    MESSAGES_WEBHOOK_SECRET), or with an API key.
    """
    source = replace(
        await _source(state, authorization, x_stmsg_mailbox), verdict=_verdict(x_stmsg_sender_auth)
    )
    is_spam = _is_spam(x_stmsg_is_spam)
    if x_stmsg_is_spam is None and source.project_id is not None:
        is_spam = False
    source = replace(source, is_spam=is_spam)
    response = await _ingest(request, state, source)
    outcome = response.code or response.status
    by = "messages" if source.project_id is None else "api_key"
    metrics.INBOUND_REPLIES.labels(by, outcome).inc()
    # A webhook of all mailboxes brings every mail that arrives: mails without a reply are not logged as info.
    log_as = log.debug if outcome == "no_reply" else log.info
    log_as("inbound_reply", source=by, outcome=outcome)
    return response


async def _ingest(request: Request, state: State, source: Source) -> InboundAnswer:
    """Apply the mail.

    For Messages, faults that no retry would fix are a 200: it holds a mail until it gets one, for two days.
    """
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
    return await ingest_reply(state.sessions, state.settings, keys, source, mail)


async def _read(request: Request) -> bytes | None:
    """Return the whole mail; None if it is too large."""
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > _LONGEST_MAIL:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _is_spam(text: str | None) -> bool | None:
    """Read the header; None if it decides nothing, such as `pending`."""
    word = (text or "").strip().lower()
    return False if word == "false" else True if word in {"true", "1", "yes"} else None


def _verdict(text: str | None) -> Verdict | None:
    """Read the header. An unknown word counts as `none`."""
    if text is None:
        return None
    word = text.strip().lower()
    if word == "pass":
        return "pass"
    return "fail" if word == "fail" else "none"


async def _source(state: State, authorization: str | None, mailbox: str | None) -> Source:
    """Authenticate the request before its body is read. Raises Unauthorized."""
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
        # The key of a webhook channel with auth_method api_key names no mailbox, so the header has to.
        if not any([hmac.compare_digest(token.encode(), secret.encode()) for secret in secrets]):  # noqa: C419 - all of them, in constant time
            raise Unauthorized("The webhook's key is not valid.")
        if not mailbox:
            raise Unauthorized("X-StMsg-Mailbox does not name the mailbox.")
        return Source(project_id=None, mailbox=mailbox)
    keys = [secret for secret in secrets if not secret.startswith(_STATIC_KEY_PREFIX)]
    mailbox, digest = read_webhook_token(token, keys)
    return Source(project_id=None, mailbox=mailbox, body_sha256=digest)
