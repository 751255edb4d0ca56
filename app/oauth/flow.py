"""The provider's side of connecting by browser: requests built by authlib, sent by app/providers.

See docs/reference/google.md, "OAuth consent", and docs/reference/microsoft.md, "Token endpoint".

A function here is either pure or one request to the provider; service.py uses the database.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from authlib.common.security import generate_token
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.client import OAuth2Client

from app.core.fetch import Response
from app.core.http import httpx, is_header_safe
from app.credentials.account import Account
from app.events import limits
from app.oauth.schemas import OAuthPlatform
from app.providers.base import Unavailable
from app.providers.http import request
from app.settings import Settings

_MAX_BODY_BYTES = 64 * 1024
_DEADLINE_SECONDS = 20.0
_LONGEST_TOKEN = 10_000
_LONGEST_ACCOUNT_ID = 255
_VERIFIER_LENGTH = 64  # RFC 7636 4.1: 43 to 128
_STATE_LENGTH = 43
_WORD = re.compile(r"[a-z_]{1,64}")
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+")

_GOOGLE_SCOPES = frozenset(
    {"https://www.googleapis.com/auth/calendar", "https://www.googleapis.com/auth/calendar.readonly"}
)
# The last part, in lower case (docs/reference/microsoft.md, "Scopes").
_MICROSOFT_SCOPES = frozenset(
    {"calendars.read", "calendars.readwrite", "calendars.read.shared", "calendars.readwrite.shared"}
)
_DEAD_CODE = frozenset({"invalid_grant", "interaction_required", "login_required", "consent_required"})
_REFUSED = frozenset({"access_denied", "admin_policy_enforced", "org_internal"})


class FlowFailed(Exception):
    """The calendar is not connected. `error` and `description` go to the application's redirect_uri.

    Neither ever holds a code, a token, a secret, or free text of the provider.
    """

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


@dataclass(frozen=True, slots=True)
class Granted:
    """The tokens for a code. `refresh_token` None: the provider gave none this time."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client of an application, and the callback that is registered for it at the provider."""

    platform: OAuthPlatform
    client_id: str
    client_secret: str = field(repr=False)
    callback_url: str


@dataclass(frozen=True, slots=True)
class _Provider:
    name: str
    scope: str
    extra: Mapping[str, str]
    """Parameters of the authorize request."""


_PROVIDERS: dict[OAuthPlatform, _Provider] = {
    "google": _Provider(
        name="Google",
        scope="https://www.googleapis.com/auth/calendar.readonly https://www.googleapis.com/auth/userinfo.email",
        extra={"access_type": "offline"},
    ),
    "microsoft": _Provider(
        name="Microsoft",
        scope="offline_access https://graph.microsoft.com/Calendars.Read https://graph.microsoft.com/User.Read",
        extra={"response_mode": "query"},
    ),
}


class _Exchange(OAuth2Client):  # type: ignore[misc] # authlib has no types
    """Authlib's client over our own HTTP: bounded in time and size, and no second pool of connections."""

    def __init__(self, client: Client, http: httpx.AsyncClient | None = None) -> None:
        super().__init__(
            session=http,
            client_id=client.client_id,
            client_secret=client.client_secret,
            token_endpoint_auth_method="client_secret_post",  # noqa: S106 - the name of a method
            scope=_PROVIDERS[client.platform].scope,
            redirect_uri=client.callback_url,
            code_challenge_method="S256",
        )
        self._name = _PROVIDERS[client.platform].name

    async def _fetch_token(
        self, url: str, *, body: str, headers: dict[str, str], auth: ClientAuth, method: str
    ) -> Response:
        _, _, form = auth.prepare(method, url, dict(headers), body)
        return await request(
            self.session,
            method,
            url,
            provider=f"{self._name}'s token endpoint",
            form=dict(parse_qsl(form, keep_blank_values=True)),
            max_bytes=_MAX_BODY_BYTES,
            deadline_seconds=_DEADLINE_SECONDS,
        )


def provider_name(platform: OAuthPlatform) -> str:
    return _PROVIDERS[platform].name


def callback_url(settings: Settings, platform: OAuthPlatform) -> str:
    """The redirect address that must be registered at the provider (docs/reference/http-api.md)."""
    return f"{settings.app_url}/oauth/{platform}/callback"


def new_state() -> str:
    return str(generate_token(_STATE_LENGTH))


def new_code_verifier() -> str:
    return str(generate_token(_VERIFIER_LENGTH))


def authorization_url(
    settings: Settings,
    client: Client,
    *,
    state: str,
    code_verifier: str,
    login_hint: str | None,
    ask_consent: bool,
) -> str:
    """The address to which the browser is sent. `ask_consent`: Google then always gives a refresh token.

    It is not always asked for: each time makes a new refresh token, and beyond 100 of them Google revokes the oldest.
    Microsoft gives one every time.
    """
    address = (
        settings.google_oauth_authorize_url
        if client.platform == "google"
        else settings.microsoft_oauth_authorize_url
    )
    extra = dict(_PROVIDERS[client.platform].extra)
    if login_hint is not None:
        extra["login_hint"] = login_hint
    if ask_consent and client.platform == "google":
        extra["prompt"] = "consent"
    elif client.platform == "microsoft" and login_hint is None:
        # Otherwise a browser that is signed in to one account takes that one without asking.
        extra["prompt"] = "select_account"
    url, _ = _Exchange(client).create_authorization_url(
        address, state=state, code_verifier=code_verifier, **extra
    )
    return str(url)


async def redeem_code(
    settings: Settings, http: httpx.AsyncClient, client: Client, *, code: str, code_verifier: str
) -> Granted:
    """The tokens for an authorization code. Raises FlowFailed, also where the calendar was not granted."""
    address = (
        settings.google_oauth_token_url if client.platform == "google" else settings.microsoft_oauth_token_url
    )
    try:
        response = await _Exchange(client, http).fetch_token(
            address, grant_type="authorization_code", code=code, code_verifier=code_verifier
        )
    except Unavailable as err:
        raise _try_again(err.message) from None
    fields = response.json_object() or {}
    name = provider_name(client.platform)
    if response.status != 200:
        raise _refusal(name, response.status, fields)
    scope = fields.get("scope")
    access_token = _token(fields.get("access_token"))
    if access_token is None:
        raise _try_again(f"{name} gave no access token.")
    # RFC 6749 5.1: no scope in the response means that all was granted that was asked for.
    if isinstance(scope, str) and scope.strip() and not _has_calendar(client.platform, scope):
        raise FlowFailed(
            "access_denied",
            f"The permission to read the calendar was not given. Connect again and leave its box ticked at {name}.",
        )
    return Granted(access_token=access_token, refresh_token=_token(fields.get("refresh_token")))


async def load_account(
    settings: Settings, http: httpx.AsyncClient, platform: OAuthPlatform, access_token: str
) -> Account:
    """The account that has agreed, as far as it shows itself. Raises FlowFailed for an outage."""
    if platform == "google":
        url = settings.google_userinfo_url
    else:
        url = f"{settings.microsoft_graph_base_url}/me?$select=id,mail,userPrincipalName"
    try:
        response = await request(
            http,
            "GET",
            url,
            provider=provider_name(platform),
            headers={"Authorization": f"Bearer {access_token}"},
            max_bytes=_MAX_BODY_BYTES,
            deadline_seconds=_DEADLINE_SECONDS,
        )
    except Unavailable as err:
        raise _try_again(err.message) from None
    if response.status == 403:  # the address was not granted; the calendar was
        return Account(None, None)
    if response.status != 200:
        raise _try_again(
            f"{provider_name(platform)} returned HTTP status {response.status} when asked for the e-mail address."
        )
    fields = response.json_object() or {}
    account_id = fields.get("id")
    is_id = (
        isinstance(account_id, str)
        and 0 < len(account_id) <= _LONGEST_ACCOUNT_ID
        and account_id.isprintable()
    )
    return Account(account_id if is_id else None, _email(fields))


def _email(fields: Mapping[str, Any]) -> str | None:
    for key in ("email", "mail", "userPrincipalName"):
        value = limits.cut(fields.get(key), limits.EMAIL)
        # A guest's userPrincipalName is no address: x_y.com#EXT#@tenant (docs/reference/microsoft.md, "Account").
        if value is not None and _EMAIL.fullmatch(value) and "#EXT#" not in value:
            return value
    return None


def refused_by_person(platform: OAuthPlatform, error: str) -> FlowFailed:
    """The failure for the provider's `error` at the callback.

    Its description is left out: any caller can write one.
    """
    name = provider_name(platform)
    word = error if _WORD.fullmatch(error) else "server_error"
    if word == "access_denied":
        return FlowFailed(word, f"The permission to read the calendar was not given at {name}.")
    if word in {"temporarily_unavailable", "server_error"}:
        return FlowFailed(word, f"{name} could not finish the connection. Try again.")
    return FlowFailed(word, f"{name} ended the connection with the error {word}.")


def with_query(redirect_uri: str, parameters: Mapping[str, str]) -> str:
    """`redirect_uri` with more parameters; those that it has stay, letter for letter."""
    joint = "" if redirect_uri.endswith(("?", "&")) else "&" if "?" in redirect_uri else "?"
    return f"{redirect_uri}{joint}{urlencode(parameters)}"


def _has_calendar(platform: OAuthPlatform, scope: str) -> bool:
    """Whether a scope reads the calendar, or more.

    Order means nothing, and at Microsoft neither does case.
    """
    names = scope.split()
    if platform == "google":
        return not _GOOGLE_SCOPES.isdisjoint(names)
    return not _MICROSOFT_SCOPES.isdisjoint(name.rpartition("/")[2].casefold() for name in names)


def _token(value: Any) -> str | None:
    """Return the token; None if it is not valid in a header, because httpx would quote it in an error."""
    return (
        value if isinstance(value, str) and len(value) <= _LONGEST_TOKEN and is_header_safe(value) else None
    )


def _refusal(name: str, status: int, fields: Mapping[str, Any]) -> FlowFailed:
    word = fields.get("error")
    if status == 429 or status >= 500 or not isinstance(word, str) or not _WORD.fullmatch(word):
        return _try_again(f"{name}'s token endpoint returned HTTP status {status}.")
    if word in _DEAD_CODE:
        return FlowFailed("invalid_grant", f"{name} did not accept the authorization code. Connect again.")
    if word in _REFUSED:
        return FlowFailed(
            "access_denied", f"This {name} account may not give access to its calendar ({word})."
        )
    numbers = fields.get("error_codes")
    known = (
        [f"AADSTS{number}" for number in numbers[:1] if isinstance(number, int)]
        if isinstance(numbers, list)
        else []
    )
    named = ", ".join([word, *known])
    return FlowFailed(
        "invalid_client",
        f"{name} refuses the OAuth app ({named}): check its client id, secret and registered redirect address.",
    )


def _try_again(fact: str) -> FlowFailed:
    return FlowFailed("temporarily_unavailable", f"{fact} Try again in a moment.")
