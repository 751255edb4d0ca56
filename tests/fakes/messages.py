"""A fake Messages over real HTTP: the server-to-server API, with all rules of docs/reference/messages.md.

Like the real one it does not deduplicate, returns HTML errors for what its web server refuses, compares look-ups
with case, checks no user's role for a global key, sees groups of addresses inside quoted names, drops addresses that it
does not believe in, keeps no second copy of a Message-ID in an inbox, threads by subject, and counts the recipients of
each mailbox by itself. Incoming mails go through its webhook channel (`deliver`).
"""

import asyncio
import email
import email.policy
import hashlib
import hmac
import json
import re
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from email.message import EmailMessage, Message
from email.parser import BytesHeaderParser
from email.utils import getaddresses
from typing import Any

from joserfc import jwt
from joserfc.jwk import OctKey
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from app.core.http import httpx

# What it takes for an address; anything else is dropped without a word.
_ADDRESS = re.compile(r"[!-~]+@(localhost|([A-Za-z0-9-]+\.)+([A-Za-z]{2,63}|xn--[A-Za-z0-9-]{1,59}))")
_GROUP = re.compile(r"[^:;]*:([^;]*);")
_PREFIX = re.compile(r"^\s*(re|fwd|fw|rep|tr|rép)\s*:\s*", re.IGNORECASE)
_MOST_RECIPIENTS = 500
_LARGEST_MAIL = 20 * 1024 * 1024
_SUBMIT, _MAILBOXES = "/api/v1.0/submit/", "/api/v1.0/provisioning/mailboxes/"


@dataclass
class FakeMailbox:
    id: str
    email: str
    name: str | None
    users: dict[str, str]  # address -> role
    inbox: list["Submitted"] = field(default_factory=list)


@dataclass(frozen=True)
class Submitted:
    """A mail that was taken. `thread_id` is the `message_id` of the first mail of its thread in the sender's mailbox."""

    mailbox_id: str
    recipients: list[str]
    raw: bytes
    message_id: str
    thread_id: str = ""

    @property
    def mail(self) -> EmailMessage:
        return email.message_from_bytes(self.raw, policy=email.policy.default)

    def part(self, content_type: str) -> Any:
        """The content of the first part of this type, decoded."""
        return next(
            part for part in self.mail.walk() if part.get_content_type() == content_type
        ).get_content()


@dataclass
class Fault:
    """What the next call of a kind gets instead of a response.

    `take`: the mail is taken all the same. `hang`: no response for so many seconds. `drop`: the connection is cut.
    """

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    html: bool = True
    take: bool = False
    hang: float = 0
    drop: bool = False


_STAMPS = re.compile(rb"^x-stmsg-[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE | re.MULTILINE)


@dataclass
class WebhookChannel:
    """A channel of type `webhook`. `stamps`: the sender's verdict is written into the mail, as in released versions."""

    url: str
    trigger: str = "message.delivering"
    format: str = "eml"
    auth_method: str = "jwt"
    secret: str = field(default_factory=lambda: f"webhook-secret-{uuid.uuid4().hex}")
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    stamps: bool = True

    @property
    def static_key(self) -> str:
        """What `auth_method: api_key` sends."""
        digest = hmac.digest(self.secret.encode(), b"messages.webhook.api_key.v1", "sha256")
        return f"whk_{digest.hex()}"


@dataclass
class Incoming:
    """A mail on its way into a mailbox.

    `state`: `held` until a webhook that blocks has returned 2xx, then `delivered`, or `dropped` if it said so.
    `wishes`: what else the response's body asked for. `responses`: (status code, body) of each post.
    """

    mailbox: FakeMailbox
    raw: bytes
    is_spam: bool
    state: str = "held"
    wishes: dict[str, Any] = field(default_factory=dict)
    responses: list[tuple[int, str]] = field(default_factory=list)


# What a body of a 2xx may ask for (Messages' docs/webhooks.md, "JSON action body").
_WISHES = (
    "is_spam", "add_labels", "assign_to", "mark_starred", "mark_read", "mark_trashed", "mark_archived",
    "skip_autoreply", "add_event", "reply_draft",
)  # fmt: skip


class FakeMessages:
    """An ASGI app. `faults` and `look_up_faults` are used up one by one, by submits and by look-ups.

    `limits`: how many recipients a mailbox may still send to, by its id; then 429 with `retry_after`.
    `takes_seconds`: how long a submit takes. `most_at_once`: submits of one mailbox that were under way together.
    """

    def __init__(self) -> None:
        self.api_key = "messages-key-" + "k" * 20
        self.channel_id = str(uuid.uuid4())
        self.scopes = {"mailboxes:read", "messages:send"}
        self.is_global = True
        self.mailboxes: dict[str, FakeMailbox] = {}
        self.submitted: list[Submitted] = []
        self.look_ups: list[dict[str, str]] = []
        self.faults: deque[Fault] = deque()
        self.look_up_faults: deque[Fault] = deque()
        self.refused: list[tuple[int, str]] = []
        self.limits: dict[str, int] = {}
        self.retry_after = "37508"
        self.takes_seconds = 0.0
        self.most_at_once = 0
        self._at_once: Counter[str] = Counter()
        # By mailbox and Message-ID: the thread and the bare subject of what was sent.
        self._sent: dict[str, dict[str, tuple[str, str]]] = {}
        self.webhook: WebhookChannel | None = None
        self.incoming: list[Incoming] = []

    def add_mailbox(self, address: str, *, name: str | None = None, **users: str) -> FakeMailbox:
        """`users` as role="address": add_mailbox("team@x.org", admin="ada@x.org")."""
        mailbox = FakeMailbox(str(uuid.uuid4()), address, name, {user: role for role, user in users.items()})
        self.mailboxes[mailbox.id] = mailbox
        return mailbox

    async def deliver(
        self, mailbox: FakeMailbox, raw: bytes, *, is_spam: bool = False, verdict: str | None = None
    ) -> Incoming:
        """A mail arrives. `verdict`: `none` or `fail`, of its own DKIM and DMARC checks; None for a verified one."""
        head, blank, body = raw.partition(b"\r\n\r\n")
        raw = _STAMPS.sub(b"", head + b"\r\n") + blank[2:] + body
        if verdict is not None and self.webhook is not None and self.webhook.stamps:
            raw = f"X-StMsg-Sender-Auth: {verdict}\r\n".encode() + raw
        incoming = Incoming(mailbox, raw, is_spam)
        self.incoming.append(incoming)
        await self._process(incoming)
        return incoming

    async def sweep(self) -> None:
        """What it does every 5 minutes, for 48 hours: the mails that are held go to the webhook again."""
        for incoming in self.incoming:
            if incoming.state == "held":
                await self._process(incoming)

    async def _process(self, incoming: Incoming) -> None:
        channel = self.webhook
        if channel is None:
            incoming.state = "delivered"
            return
        blocks = channel.trigger != "message.delivered"
        response = await self._post(channel, incoming)
        if response is not None:
            incoming.responses.append((response.status_code, response.text))
        if not blocks:
            incoming.state = "delivered"
            return
        if response is None or not 200 <= response.status_code < 300:
            return
        incoming.state = "delivered"
        try:
            document = json.loads(response.content)
        except ValueError:
            return
        if isinstance(document, dict):
            if str(document.get("action", "")).lower() == "drop":
                incoming.state = "dropped"
            incoming.wishes = {name: document[name] for name in _WISHES if name in document}

    async def _post(self, channel: WebhookChannel, incoming: Incoming) -> Any:
        """The response; None where there was none."""
        if channel.format == "eml":
            content_type, body = "message/rfc822", incoming.raw
        else:
            subject = email.message_from_bytes(incoming.raw)["Subject"]
            content_type, body = "application/json", json.dumps({"subject": subject}).encode()
        spam = {True: "true", False: "false"}[incoming.is_spam]
        headers = {
            "User-Agent": "Messages-Webhook/1.0",
            "Content-Type": content_type,
            "Authorization": f"Bearer {self._credential(channel, incoming, body)}",
            "X-StMsg-Trigger": channel.trigger,
            "X-StMsg-Channel-Id": channel.id,
            "X-StMsg-Mailbox": incoming.mailbox.email,
            "X-StMsg-Mailbox-Id": incoming.mailbox.id,
            "X-StMsg-Recipient": incoming.mailbox.email,
            "X-StMsg-Is-Spam": "pending" if channel.trigger == "message.inbound" else spam,
        }
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            try:
                return await client.post(channel.url, content=body, headers=headers)
            except httpx.HTTPError:
                return None

    def _credential(self, channel: WebhookChannel, incoming: Incoming, body: bytes) -> str:
        if channel.auth_method == "api_key":
            return channel.static_key
        now = int(time.time())
        claims = {
            "iss": "messages-webhook",
            "iat": now,
            "exp": now + 300,
            "jti": uuid.uuid4().hex,
            "sub": incoming.mailbox.email,
            "cid": channel.id,
            "body_sha256": hashlib.sha256(body).hexdigest(),
        }
        return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(channel.secret))

    async def wait_for(self, count: int, *, seconds: float = 10) -> list[Submitted]:
        async with asyncio.timeout(seconds):
            while len(self.submitted) < count:
                await asyncio.sleep(0.005)
        return self.submitted[:count]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response = await self._respond(request)
        if response is None:
            send.__self__.transport.abort()  # uvicorn's: what a dying server looks like from outside
            return
        if response.status_code >= 300:
            self.refused.append((response.status_code, bytes(response.body).decode()))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response | None:
        path = request.url.path
        if path + "/" in {_SUBMIT, _MAILBOXES}:
            return RedirectResponse(path + "/", 301)
        if path not in {_SUBMIT, _MAILBOXES}:
            return _html(404, "Not Found")
        if request.method != ("POST" if path == _SUBMIT else "GET"):
            return JSONResponse({"detail": f'Method "{request.method}" not allowed.'}, 405)
        return await (self._submit(request) if path == _SUBMIT else self._list(request))

    def _refusal(self, request: Request, scope: str) -> Response | None:
        key, channel = request.headers.get("X-API-Key"), request.headers.get("X-Channel-Id")
        if not key or not channel:
            return JSONResponse({"detail": "Authentication credentials were not provided."}, 401)
        # Hashes are compared, as there.
        known = hashlib.sha256(self.api_key.encode()).hexdigest()
        if channel != self.channel_id or hashlib.sha256(key.encode()).hexdigest() != known:
            return JSONResponse({"detail": "Invalid API key or channel."}, 401)
        if scope not in self.scopes:
            return JSONResponse({"detail": "You do not have permission to perform this action."}, 403)
        return None

    async def _faulty(self, fault: Fault) -> Response | None:
        if fault.hang:
            await asyncio.sleep(fault.hang)
        if fault.drop:
            return None
        if fault.html:
            return _html(fault.status, "Server Error", fault.headers)
        return JSONResponse({"detail": "Request was throttled."}, fault.status, headers=fault.headers)

    async def _list(self, request: Request) -> Response | None:
        if self.look_up_faults:
            return await self._faulty(self.look_up_faults.popleft())
        refusal = self._refusal(request, "mailboxes:read")
        if refusal is not None:
            return refusal
        if not self.is_global:
            return JSONResponse({"detail": "This channel is not global."}, 403)
        query = dict(request.query_params)
        self.look_ups.append(query)
        user, address = query.get("user_email"), query.get("email")
        if user:
            found = [box for box in self.mailboxes.values() if user in box.users]
        elif address:
            found = [box for box in self.mailboxes.values() if box.email == address]
        else:
            return JSONResponse({"detail": "user_email or email is required."}, 400)
        return JSONResponse({"results": [_mailbox(box, user) for box in found]})

    async def _submit(self, request: Request) -> Response | None:
        raw = await request.body()
        box = request.headers.get("X-Mail-From", "")
        self._at_once[box] += 1
        self.most_at_once = max(self.most_at_once, self._at_once[box])
        try:
            await asyncio.sleep(self.takes_seconds)
            return await self._submit_now(request, raw)
        finally:
            self._at_once[box] -= 1

    async def _submit_now(self, request: Request, raw: bytes) -> Response | None:
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and not fault.take:
            return await self._faulty(fault)
        response = self._take(request, raw)
        if fault is not None:
            return await self._faulty(fault)
        return response

    def _take(self, request: Request, raw: bytes) -> Response:
        refusal = self._refusal(request, "messages:send")
        if refusal is not None:
            return refusal
        mailbox_id = request.headers.get("X-Mail-From", "")
        listed = [
            address.strip() for address in request.headers.get("X-Rcpt-To", "").split(",") if address.strip()
        ]
        if request.headers.get("Content-Type") != "message/rfc822":
            return JSONResponse({"detail": "Unsupported media type."}, 415)
        if not mailbox_id or not listed:
            return JSONResponse({"detail": "X-Mail-From and X-Rcpt-To are required."}, 400)
        if not raw:
            return JSONResponse({"detail": "Empty body."}, 400)
        if len(raw) > _LARGEST_MAIL:
            return _html(400, "Bad Request")
        mailbox = self.mailboxes.get(mailbox_id)
        if mailbox is None:
            return JSONResponse({"detail": "Mailbox not found."}, 404)
        if not self.is_global:
            return JSONResponse({"detail": "This channel does not cover the mailbox."}, 403)
        mail = BytesHeaderParser().parsebytes(raw)
        if mail["Bcc"] is not None:
            return JSONResponse({"detail": "Bcc is not allowed."}, 400)
        if read_addresses(mail.get_all("From", [])) != [mailbox.email]:
            return JSONResponse({"detail": "From header does not match mailbox"}, 403)
        if self.limits.get(mailbox_id, 1) <= 0:
            headers = {"Retry-After": self.retry_after}
            return JSONResponse({"detail": "Request was throttled."}, 429, headers=headers)
        in_mail = read_addresses(mail.get_all("To", []) + mail.get_all("Cc", []))
        everybody = list(dict.fromkeys([*in_mail, *listed]))
        if len(everybody) > _MOST_RECIPIENTS:
            return JSONResponse({"message": "Too many recipients."}, 400)
        if b"\n" in raw.replace(b"\r\n", b"") or max(map(len, raw.split(b"\r\n"))) > 998:
            return _html(400, "Bad Request")
        taken = [address for address in everybody if _ADDRESS.fullmatch(address)]
        submitted = self._keep(mailbox_id, taken, raw)
        if mailbox_id in self.limits:
            self.limits[mailbox_id] -= len(taken)
        return JSONResponse({"message_id": submitted.message_id, "status": "accepted"}, 202)

    def _keep(self, mailbox_id: str, recipients: list[str], raw: bytes) -> Submitted:
        """As sent, in the thread of a mail that it refers to and that has the same subject; and in its own mailboxes' inboxes."""
        mail = BytesHeaderParser(policy=email.policy.default).parsebytes(raw)
        name, subject, message_id = mail["Message-ID"], _bare_subject(mail), str(uuid.uuid4())
        sent = self._sent.setdefault(mailbox_id, {})
        referred = f"{mail['In-Reply-To'] or ''} {mail['References'] or ''}".split()
        threads = [sent[other][0] for other in referred if other in sent and sent[other][1] == subject]
        submitted = Submitted(mailbox_id, recipients, raw, message_id, threads[0] if threads else message_id)
        self.submitted.append(submitted)
        if name is not None:
            sent[name] = (submitted.thread_id, subject)
        folded = {address.lower() for address in recipients}
        for box in self.mailboxes.values():
            # What a box has already, also as sent, is not put there again.
            known = {mail.mail["Message-ID"] for mail in box.inbox} | set(self._sent.get(box.id, ()))
            if box.email.lower() in folded and (name is None or name not in known):
                box.inbox.append(submitted)
        return submitted


def read_addresses(values: list[Any]) -> list[str]:
    """As its parser does: `a: b@c;` is a group of addresses, inside a quoted name too."""
    found: list[str] = []
    for value in values:
        unfolded = re.sub(r"\r?\n(?=[ \t])", "", str(value))
        members = [member for part in _GROUP.findall(unfolded) for member in part.split(",")]
        rest = _GROUP.sub("", unfolded).strip(' "') if members else unfolded
        found += [member.strip(' "') for member in members]
        found += [address for _, address in getaddresses([rest]) if address]
    return found


def _bare_subject(mail: Message) -> str:
    subject = str(mail["Subject"] or "")
    while (stripped := _PREFIX.sub("", subject)) != subject:
        subject = stripped
    return subject


def _mailbox(box: FakeMailbox, user: str | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": box.id,
        "email": box.email,
        "name": box.name,
        "users": [{"email": address, "role": role} for address, role in box.users.items()],
    }
    if user:
        shown["role"] = box.users[user]
    return shown


def _html(status: int, title: str, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(f"<!doctype html><html><head><title>{title}</title></head></html>", status, headers)
