"""The HTTP API of La Suite Messages: mailbox look-up and submit (docs/reference/messages.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.fetch import FetchFailed, Response, fetch, load_json, retry_after
from app.core.http import httpx
from app.mail.lasuite.errors import (
    MailRefused,
    MessagesOff,
    MessagesRefused,
    MessagesThrottled,
    MessagesUnavailable,
)
from app.settings import Settings

_MAX_RESPONSE_BYTES = 8 * 1024 * 1024
_LOOK_UP_TIMEOUT_SECONDS = 15.0
# A submit usually takes 0.1 s. The limit is generous, because a slow submit sends its mail all the same.
SUBMIT_TIMEOUT_SECONDS = 60.0
_THROTTLED_SECONDS = 30.0
_REASON_CHARACTERS = 300
# The beginning of a 403 that is about the mail and not about the channel.
_FROM_REFUSED = "From header does not match"


def _json(response: Response) -> Any:
    """The JSON value of a response, or None: error bodies are often HTML."""
    try:
        return load_json(response.body)
    except ValueError:
        return None


def _reason(response: Response) -> str:
    """The reason that Messages gives for an error, on one line; empty for an HTML page."""
    value = _json(response)
    if isinstance(value, Mapping):
        texts = [text for text in map(_sentence, value.values()) if text]
        return " ".join(" ".join(texts).split())[:_REASON_CHARACTERS]
    return ""


def _sentence(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(item for item in value if isinstance(item, str))
    return ""


class MessagesClient:
    """The two endpoints of Messages. Every call raises MessagesOff while the integration is disabled."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._client = client

    @property
    def is_on(self) -> bool:
        return self._settings.feature_messages_integration

    async def fetch_mailboxes(self, user_email: str) -> list[Any]:
        """Return the list of mailboxes that the user has access to. The look-up is case-sensitive.

        Raises MessagesUnavailable, MessagesThrottled, MessagesRefused.
        """
        response = await self._call(
            "GET",
            "/provisioning/mailboxes/",
            timeout_seconds=_LOOK_UP_TIMEOUT_SECONDS,
            params={"user_email": user_email},
        )
        if response.status != 200:
            raise _failure(response)
        value = _json(response)
        results = value.get("results") if isinstance(value, Mapping) else None
        if not isinstance(results, list):
            # The page of a proxy is not a list of mailboxes. Read as an empty list, it would take rights from users.
            raise MessagesUnavailable("Messages returned something that is not a list of mailboxes.")
        return results

    async def submit(self, mailbox_id: str, recipients: Sequence[str], mail: bytes) -> str | None:
        """Submit one RFC 5322 message (CRLF); return the id that Messages gave it, if it returned one.

        Raises MessagesUnavailable, MessagesThrottled, MessagesRefused, MailRefused.
        """
        response = await self._call(
            "POST",
            "/submit/",
            timeout_seconds=SUBMIT_TIMEOUT_SECONDS,
            headers={
                "Content-Type": "message/rfc822",
                "X-Mail-From": mailbox_id,
                "X-Rcpt-To": ",".join(recipients),
            },
            content=mail,
        )
        if response.status in {200, 201, 202}:
            value = _json(response)
            message_id = value.get("message_id") if isinstance(value, Mapping) else None
            return message_id if isinstance(message_id, str) else None
        # An HTML page comes from a proxy or a misconfigured web server, and is not about this mail.
        is_about_mail = _json(response) is not None
        if response.status == 404 and is_about_mail:
            raise MailRefused(_with_reason("Messages does not know the mailbox", response))
        if response.status in {400, 413, 422} and is_about_mail:
            raise MailRefused(_with_reason(f"Messages refused the mail ({response.status})", response))
        if response.status == 403 and _reason(response).startswith(_FROM_REFUSED):
            raise MailRefused(_with_reason("Messages refused the mail (403)", response))
        raise _failure(response, is_submit=True)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Response:
        settings = self._settings
        if not settings.feature_messages_integration:
            raise MessagesOff
        assert settings.messages_api_key is not None
        assert settings.messages_channel_id is not None
        credentials = {
            "X-API-Key": settings.messages_api_key.get_secret_value(),
            "X-Channel-Id": settings.messages_channel_id,
            "Accept": "application/json",
        }
        try:
            return await fetch(
                self._client,
                method,
                f"{settings.messages_api_url}/api/v1.0{path}",
                headers={**credentials, **(headers or {})},
                params=params,
                content=content,
                max_bytes=_MAX_RESPONSE_BYTES,
                deadline_seconds=timeout_seconds,
                may_be_silent=True,
            )
        except FetchFailed as err:
            if err.stage == "connect":
                problem = f"cannot be reached ({err.cause})"
            elif err.code == "too_large":
                problem = "sent too large a response"
            elif err.code == "timeout" and err.stage == "receive":
                problem = "did not respond in time"
            else:
                problem = f"broke the connection off ({err.cause})"
            # Only a request that was sent completely may have been accepted.
            may_be_taken = err.stage == "receive"
        raise MessagesUnavailable(f"Messages {problem}.", may_be_taken=may_be_taken)


def _failure(response: Response, *, is_submit: bool = False) -> Exception:
    status = response.status
    if status == 429:
        seconds = retry_after(response.headers)
        wait = _THROTTLED_SECONDS if seconds is None else seconds
        return MessagesThrottled("Messages is asked too often.", retry_after=max(1, round(wait)))
    if status >= 500:
        # After a 504 the gateway does not know the result. Messages returns 500 when its broker is unavailable, but
        # keeps the mail and sends it later.
        return MessagesUnavailable(
            f"Messages answered {status}.",
            may_be_taken=is_submit and status in {500, 504},
            retry_after=retry_after(response.headers) or 0.0,
        )
    sentence = {
        401: "Messages refuses the key or the channel: check MESSAGES_API_KEY and MESSAGES_CHANNEL_ID",
        403: "Messages refuses: the channel must be global, with the scopes mailboxes:read and messages:send",
        404: "Messages is not at this address: check MESSAGES_API_URL",
    }.get(status)
    if sentence is None and 300 <= status < 400:
        sentence = "Messages redirects: MESSAGES_API_URL must be its https address"
    return MessagesRefused(
        _with_reason(sentence or f"Messages answered {status}", response), status_code_there=status
    )


def _with_reason(sentence: str, response: Response) -> str:
    reason = _reason(response).rstrip(".")
    return f"{sentence}: {reason}." if reason else f"{sentence}."
