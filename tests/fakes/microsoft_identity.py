"""The identity platform of the fake Microsoft: authorize and token endpoints, clients, grants.

See docs/reference/microsoft.md, "Token endpoint".
"""

import base64
import dataclasses
import hashlib
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.core.clock import utcnow
from tests.fakes.microsoft_http import GraphError, json_response
from tests.fakes.microsoft_store import Mailbox

CALENDAR_SCOPE = "Calendars.Read"
USER_SCOPE = "User.Read"
DEFAULT_SCOPES = (CALENDAR_SCOPE, USER_SCOPE, "offline_access")

_OIDC_SCOPES = {"offline_access", "openid", "profile", "email", ".default"}
_NOT_MULTI_TENANT = (
    "AADSTS50194: Application is not configured as a multi-tenant application. "
    "Usage of the /common endpoint is not supported for such apps."
)


@dataclasses.dataclass(slots=True)
class OAuthClient:
    """`tenant_id` None: multi-tenant."""

    secret: str
    redirect_uris: tuple[str, ...]
    tenant_id: str | None = None
    is_disabled: bool = False
    is_secret_expired: bool = False


@dataclasses.dataclass(slots=True)
class Grant:
    """`refusal` is the response to a refresh from now on: error, AADSTS number, suberror."""

    client_id: str
    mailbox: Mailbox
    scopes: tuple[str, ...]
    refusal: tuple[str, int, str | None] | None = None
    are_access_tokens_dead: bool = False


@dataclasses.dataclass(slots=True)
class RefreshToken:
    grant: Grant
    expires_at: datetime
    is_superseded: bool = False
    late_uses: int = 0


@dataclasses.dataclass(slots=True)
class _Code:
    grant: Grant
    redirect_uri: str
    challenge: str | None
    method: str
    expires_at: datetime
    is_used: bool = False


class TokenError(Exception):
    def __init__(self, status: int, error: str, number: int, text: str, suberror: str | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.headers: dict[str, str] = {}
        trace, correlation = uuid.uuid4(), uuid.uuid4()
        stamp = "2026-11-20 10:00:00Z"
        self.body: dict[str, Any] = {
            "error": error,
            "error_description": f"AADSTS{number}: {text} Trace ID: {trace} Correlation ID: {correlation} "
            f"Timestamp: {stamp}",
            "error_codes": [number],
            "timestamp": stamp,
            "trace_id": str(trace),
            "correlation_id": str(correlation),
            "error_uri": f"https://login.microsoftonline.com/error?code={number}",
        }
        if suberror:
            self.body["suberror"] = suberror


class IdentityPlatform:
    """Accounts, clients and tokens. Switches are plain attributes."""

    def __init__(self) -> None:
        self.now: Callable[[], datetime] = utcnow
        self.access_token_ttl = 3599.0
        self.refresh_token_life = timedelta(days=90)
        self.refresh_tokens_roll = True
        self.refresh_tokens_rotate = True
        self.late_uses_allowed: int | None = None  # of a refresh token that was replaced; 0: strictly none
        self.omits_refresh_token = False
        self.denies_consent = False
        self.granted_scopes: tuple[str, ...] | None = None  # what the person grants; None: all that is asked
        self.scope_style: Literal["short", "url", "lower"] = "short"

        self.tenant_id = "11111111-2222-3333-4444-555555555555"
        self.mailboxes: dict[str, Mailbox] = {}
        self.email = ""
        self.client_id, self.client_secret = "66666666-7777-8888-9999-000000000000", "fake~secret.of-an.app"
        self.refresh_token = ""  # the first grant's
        self._clients: dict[str, OAuthClient] = {}
        self._codes: dict[str, _Code] = {}
        self._refresh_tokens: dict[str, RefreshToken] = {}
        self._access_tokens: dict[str, tuple[Grant, float]] = {}
        self.add_client(self.client_id, self.client_secret)

    def mailbox(self, email: str | None = None) -> Mailbox:
        return self.mailboxes[email or self.email]

    def add_client(
        self, client_id: str, secret: str, *, redirect_uris: Iterable[str] = (), tenant_id: str | None = None
    ) -> None:
        """With `tenant_id` the app is single-tenant and not usable through `/common`."""
        self._clients[client_id] = OAuthClient(secret, tuple(redirect_uris), tenant_id)

    def client(self, client_id: str | None = None) -> OAuthClient:
        return self._clients[client_id or self.client_id]

    def delete_client(self, client_id: str) -> None:
        del self._clients[client_id]

    def add_grant(
        self,
        *,
        mailbox: str | None = None,
        client_id: str | None = None,
        scopes: Iterable[str] = DEFAULT_SCOPES,
    ) -> str:
        """A refresh token, as if a person had just consented."""
        return self._issue_refresh_token(
            Grant(client_id or self.client_id, self.mailbox(mailbox), tuple(scopes))
        )

    def revoke_grant(
        self,
        refresh_token: str | None = None,
        *,
        error: str = "invalid_grant",
        number: int = 50173,
        suberror: str | None = None,
        with_access_tokens: bool = False,
    ) -> None:
        """Every refresh token of the grant is refused like this; access tokens live on by default."""
        grant = self._refresh_tokens[refresh_token or self.refresh_token].grant
        grant.refusal = (error, number, suberror)
        grant.are_access_tokens_dead = with_access_tokens

    def restore_grant(self, refresh_token: str | None = None) -> None:
        grant = self._refresh_tokens[refresh_token or self.refresh_token].grant
        grant.refusal, grant.are_access_tokens_dead = None, False

    def issue_access_token(self, *, refresh_token: str | None = None, ttl: float | None = None) -> str:
        return self._issue_access_token(self._refresh_tokens[refresh_token or self.refresh_token].grant, ttl)

    def expire_access_tokens(self) -> None:
        self._access_tokens = {token: (grant, 0.0) for token, (grant, _) in self._access_tokens.items()}

    def check_token(self, request: Request, scopes: set[str]) -> Grant:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise GraphError(401, "InvalidAuthenticationToken", "Access token is empty.")
        if token not in self._access_tokens:
            text = "CompactToken parsing failed with error code: 80049217"
            raise GraphError(401, "InvalidAuthenticationToken", text)
        grant, expires_at = self._access_tokens[token]
        if grant.mailbox.asks_for_claims:
            challenge = (
                'Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", '
                'error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnt9fQ=="'
            )
            text = "Continuous access evaluation resulted in challenge."
            raise GraphError(401, "InvalidAuthenticationToken", text, {"WWW-Authenticate": challenge})
        if grant.are_access_tokens_dead or expires_at <= time.monotonic():
            text = "Lifetime validation failed, the token is expired."
            raise GraphError(401, "InvalidAuthenticationToken", text)
        if not {_scope_name(scope) for scope in grant.scopes} & scopes:
            text = "Access is denied. Check credentials and try again."
            raise GraphError(403, "ErrorAccessDenied", text)
        return grant

    async def authorize(self, request: Request) -> Response:
        asked = request.query_params
        client = self._clients.get(asked.get("client_id", ""))
        if client is None:
            return Response(
                "AADSTS700016: Application was not found in the directory.", 400, media_type="text/html"
            )
        redirect_uri = asked.get("redirect_uri", "")
        if redirect_uri not in client.redirect_uris:
            return Response("AADSTS50011: The redirect URI does not match.", 400, media_type="text/html")
        if client.tenant_id is not None and request.path_params["tenant"] != client.tenant_id:
            return Response(_NOT_MULTI_TENANT, 400, media_type="text/html")
        state = {"state": asked["state"]} if "state" in asked else {}
        method = asked.get("code_challenge_method", "plain")
        is_wrong = asked.get("response_type") != "code" or not asked.get("scope")
        is_wrong = is_wrong or asked.get("response_mode", "query") != "query"
        if is_wrong or method not in {"S256", "plain"}:
            text = "AADSTS900144: The request is malformed."
            return _redirect(redirect_uri, {"error": "invalid_request", "error_description": text, **state})
        if self.denies_consent:
            text = "AADSTS65004: User declined to consent to access the app."
            return _redirect(redirect_uri, {"error": "access_denied", "error_description": text, **state})
        mailbox = self.mailboxes.get(asked.get("login_hint", ""), self.mailbox())
        scopes = self.granted_scopes or tuple(asked["scope"].split())
        code = f"M.C507_BAY.2.U.{secrets.token_urlsafe(16)}"
        self._codes[code] = _Code(
            grant=Grant(asked["client_id"], mailbox, scopes),
            redirect_uri=redirect_uri,
            challenge=asked.get("code_challenge"),
            method=method,
            expires_at=self.now() + timedelta(minutes=10),
        )
        return _redirect(redirect_uri, {"code": code, **state})

    async def token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        self._check_client(request.path_params["tenant"], form)
        if form.get("grant_type") == "refresh_token":
            stored = self._redeem(form)
            if self.refresh_tokens_rotate:
                stored.is_superseded = True
            elif self.refresh_tokens_roll:
                stored.expires_at = self.now() + self.refresh_token_life
            expires_at = None if self.refresh_tokens_roll else stored.expires_at
            return self._token_response(stored.grant, expires_at, rotates=self.refresh_tokens_rotate)
        if form.get("grant_type") == "authorization_code":
            return self._token_response(self._exchange(form), None, rotates=True)
        raise TokenError(400, "unsupported_grant_type", 70003, "The grant type is not supported.")

    def _check_client(self, tenant: str, form: dict[str, str]) -> None:
        if tenant not in {"common", "organizations", "consumers", self.tenant_id}:
            raise TokenError(400, "invalid_request", 90002, f"Tenant '{tenant}' not found.")
        client = self._clients.get(form.get("client_id", ""))
        if client is None:
            raise TokenError(
                400, "unauthorized_client", 700016, "Application was not found in the directory."
            )
        if client.is_disabled:
            raise TokenError(400, "unauthorized_client", 7000112, "Application is disabled.")
        if client.tenant_id is not None and tenant != client.tenant_id:
            raise TokenError(400, "invalid_request", 50194, _NOT_MULTI_TENANT)
        if client.is_secret_expired:
            raise TokenError(401, "invalid_client", 7000222, "The provided client secret keys are expired.")
        if not secrets.compare_digest(client.secret, form.get("client_secret", "")):
            raise TokenError(401, "invalid_client", 7000215, "Invalid client secret provided.")

    def _redeem(self, form: dict[str, str]) -> RefreshToken:
        if not form.get("refresh_token"):
            raise TokenError(400, "invalid_request", 900144, "The body must contain 'refresh_token'.")
        stored = self._refresh_tokens.get(form["refresh_token"])
        if stored is None or stored.grant.client_id != form["client_id"]:
            raise TokenError(400, "invalid_grant", 70000, "The refresh token is malformed.", "bad_token")
        if stored.grant.refusal is not None:
            error, number, suberror = stored.grant.refusal
            raise TokenError(400, error, number, "The grant is of no use any more.", suberror)
        if stored.expires_at <= self.now():
            number = 700082 if self.refresh_tokens_roll else 700084
            raise TokenError(400, "invalid_grant", number, "The refresh token has expired.", "token_expired")
        if stored.is_superseded:
            stored.late_uses += 1
            if self.late_uses_allowed is not None and stored.late_uses > self.late_uses_allowed:
                raise TokenError(400, "invalid_grant", 70000, "The refresh token was replaced.", "bad_token")
        wanted = {_scope_name(scope) for scope in form.get("scope", "").split()} - _OIDC_SCOPES
        if not wanted <= {_scope_name(scope) for scope in stored.grant.scopes}:
            raise TokenError(400, "invalid_grant", 65001, "Consent is missing.", "consent_required")
        return stored

    def _exchange(self, form: dict[str, str]) -> Grant:
        code = self._codes.get(form.get("code", ""))
        if code is None or code.grant.client_id != form["client_id"]:
            raise TokenError(400, "invalid_grant", 70000, "The code is malformed.")
        if code.is_used:
            raise TokenError(400, "invalid_grant", 54005, "The code was already redeemed.")
        code.is_used = True
        if code.expires_at <= self.now():
            raise TokenError(400, "invalid_grant", 70008, "The code has expired.")
        if form.get("redirect_uri") != code.redirect_uri:
            raise TokenError(400, "invalid_request", 50011, "The redirect URI does not match.")
        if code.challenge is not None:
            verifier = form.get("code_verifier", "")
            if code.method == "S256":
                digest = hashlib.sha256(verifier.encode()).digest()
                verifier = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if verifier != code.challenge:
                raise TokenError(
                    400, "invalid_grant", 501481, "The Code_Verifier does not match the code_challenge."
                )
        return code.grant

    def _token_response(self, grant: Grant, expires_at: datetime | None, *, rotates: bool) -> Response:
        shown = [_styled(scope, self.scope_style) for scope in grant.scopes if scope != "offline_access"]
        response = {
            "token_type": "Bearer",
            "scope": " ".join(shown),
            "expires_in": int(self.access_token_ttl),
            "ext_expires_in": int(self.access_token_ttl),
            "access_token": self._issue_access_token(grant, None),
        }
        if rotates and "offline_access" in grant.scopes and not self.omits_refresh_token:
            response["refresh_token"] = self._issue_refresh_token(grant, expires_at)
        return json_response(response)

    def _issue_refresh_token(self, grant: Grant, expires_at: datetime | None = None) -> str:
        token = f"0.AX{secrets.token_urlsafe(48)}"
        self._refresh_tokens[token] = RefreshToken(grant, expires_at or self.now() + self.refresh_token_life)
        return token

    def _issue_access_token(self, grant: Grant, ttl: float | None) -> str:
        token = f"EwB4A8l6BAAU{secrets.token_urlsafe(32)}"
        expires_at = time.monotonic() + (self.access_token_ttl if ttl is None else ttl)
        self._access_tokens[token] = (grant, expires_at)
        return token


def _redirect(uri: str, query: Mapping[str, str]) -> Response:
    parts = urlsplit(uri)
    joined = "&".join(part for part in (parts.query, urlencode(query)) if part)
    return RedirectResponse(urlunsplit(parts._replace(query=joined)), 302)


def _scope_name(scope: str) -> str:
    return scope.rpartition("/")[2].lower()


def _styled(scope: str, style: Literal["short", "url", "lower"]) -> str:
    if style == "lower":
        return scope.lower()
    return f"https://graph.microsoft.com/{scope}" if style == "url" else scope
