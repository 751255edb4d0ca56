"""OAuth of the fake Google: clients, grants, access tokens, and the account that signs in."""

import base64
import dataclasses
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from tests.fakes.google_http import ApiError, OAuthError, json_response, redirect

CALENDAR_SCOPE = "https://www.googleapis.com/auth/calendar.readonly"
EMAIL_SCOPE = "https://www.googleapis.com/auth/userinfo.email"


@dataclasses.dataclass(slots=True)
class OAuthClient:
    secret: str
    redirect_uris: tuple[str, ...]
    is_deleted: bool = False
    has_consented_user: bool = False


@dataclasses.dataclass(slots=True)
class Grant:
    client_id: str
    scopes: tuple[str, ...]
    is_revoked: bool = False
    account: tuple[str, str] | None = None  # (id, address); None: the fake's own


@dataclasses.dataclass(slots=True)
class _Code:
    grant: Grant
    redirect_uri: str
    challenge: str | None
    gives_refresh_token: bool


class IdentityPlatform:
    """Clients, grants and tokens of one account. Switches are plain attributes."""

    def __init__(self, email: str) -> None:
        self.email = email
        self.user_id = "108900000000000000000"
        # (id, address) of who is in the browser, if it is another person
        self.signed_in: tuple[str, str] | None = None
        self.access_token_ttl = 3599.0
        self.denies_consent = False
        # What the person grants; None: all that is asked.
        self.granted_scopes: tuple[str, ...] | None = None
        self._clients: dict[str, OAuthClient] = {}
        self._codes: dict[str, _Code] = {}
        self._refresh_tokens: dict[str, Grant] = {}
        self._access_tokens: dict[str, tuple[Grant, float]] = {}

        self.client_id, self.client_secret = "fake-client.apps.googleusercontent.com", "GOCSPX-fake-secret"
        self.add_client(self.client_id, self.client_secret)
        self.refresh_token = self.add_grant()

    def add_client(self, client_id: str, secret: str, *, redirect_uris: Iterable[str] = ()) -> None:
        self._clients[client_id] = OAuthClient(secret, tuple(redirect_uris))

    def delete_client(self, client_id: str) -> None:
        self._clients[client_id].is_deleted = True

    def add_grant(
        self, *, client_id: str | None = None, scopes: Iterable[str] = (CALENDAR_SCOPE, EMAIL_SCOPE)
    ) -> str:
        """A refresh token, as if a person had just consented."""
        client_id = client_id or self.client_id
        self._clients[client_id].has_consented_user = True
        return self._issue_refresh_token(Grant(client_id, tuple(scopes)))

    def revoke_grant(self, refresh_token: str) -> None:
        """The person takes the grant back: the refresh token and its access tokens die."""
        self._refresh_tokens[refresh_token].is_revoked = True

    def issue_access_token(self, *, refresh_token: str | None = None, ttl: float | None = None) -> str:
        return self._issue_access_token(self._refresh_tokens[refresh_token or self.refresh_token], ttl)

    def expire_access_tokens(self) -> None:
        self._access_tokens = {token: (grant, 0.0) for token, (grant, _) in self._access_tokens.items()}

    async def authorize(self, request: Request) -> Response:
        asked = request.query_params
        client = self._clients.get(asked.get("client_id", ""))
        if client is None or client.is_deleted:
            return Response("invalid_client: The OAuth client was not found.", 401, media_type="text/html")
        redirect_uri = asked.get("redirect_uri", "")
        if redirect_uri not in client.redirect_uris:
            return Response("redirect_uri_mismatch", 400, media_type="text/html")
        method = asked.get("code_challenge_method")
        is_wrong = asked.get("response_type") != "code" or not asked.get("scope")
        if is_wrong or ("code_challenge" in asked and method != "S256"):
            return Response("invalid_request", 400, media_type="text/html")
        state = {"state": asked["state"]} if "state" in asked else {}
        if self.denies_consent:
            return redirect(redirect_uri, {"error": "access_denied", **state})
        scopes = self.granted_scopes or tuple(asked["scope"].split())
        code = f"4/0A{secrets.token_urlsafe(16)}"
        is_first = not client.has_consented_user
        client.has_consented_user = True
        self._codes[code] = _Code(
            grant=Grant(asked["client_id"], scopes, account=self.signed_in),
            redirect_uri=redirect_uri,
            challenge=asked.get("code_challenge"),
            gives_refresh_token=asked.get("access_type") == "offline"
            and (is_first or "consent" in asked.get("prompt", "").split()),
        )
        return redirect(redirect_uri, {**state, "code": code, "scope": " ".join(scopes)})

    async def token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        client = self._clients.get(form.get("client_id", ""))
        if client is None:
            raise OAuthError(401, "invalid_client", "The OAuth client was not found.")
        if client.is_deleted:
            raise OAuthError(401, "deleted_client", "The OAuth client was deleted.")
        if not secrets.compare_digest(client.secret, form.get("client_secret", "")):
            raise OAuthError(401, "invalid_client", "Unauthorized")
        if form.get("grant_type") == "refresh_token":
            return self._token_response(self._refreshed(form))
        if form.get("grant_type") == "authorization_code":
            code = self._exchanged(form)
            extra = (
                {"refresh_token": self._issue_refresh_token(code.grant)} if code.gives_refresh_token else {}
            )
            return self._token_response(code.grant, extra)
        raise OAuthError(400, "unsupported_grant_type", "Invalid grant_type.")

    def _refreshed(self, form: dict[str, str]) -> Grant:
        if not form.get("refresh_token"):
            raise OAuthError(400, "invalid_request", "Missing required parameter: refresh_token")
        grant = self._refresh_tokens.get(form["refresh_token"])
        if grant is None:
            raise OAuthError(400, "invalid_grant", "Bad Request")
        if grant.is_revoked:
            raise OAuthError(400, "invalid_grant", "Token has been expired or revoked.")
        if grant.client_id != form["client_id"]:
            raise OAuthError(401, "unauthorized_client", "Unauthorized")
        return grant

    def _exchanged(self, form: dict[str, str]) -> _Code:
        code = self._codes.pop(form.get("code", ""), None)  # good for one attempt
        if code is None or code.grant.client_id != form["client_id"]:
            raise OAuthError(400, "invalid_grant", "Malformed auth code.")
        if form.get("redirect_uri") != code.redirect_uri:
            raise OAuthError(400, "redirect_uri_mismatch", "Bad Request")
        if code.challenge is not None:
            verifier = form.get("code_verifier", "")
            digest = hashlib.sha256(verifier.encode()).digest()
            expected = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if not re.fullmatch(r"[A-Za-z0-9\-._~]{43,128}", verifier) or expected != code.challenge:
                raise OAuthError(400, "invalid_grant", "Invalid code verifier.")
        return code

    def _token_response(self, grant: Grant, extra: Mapping[str, str] | None = None) -> Response:
        return json_response(
            {
                "access_token": self._issue_access_token(grant, None),
                "expires_in": int(self.access_token_ttl),
                "token_type": "Bearer",
                "scope": " ".join(grant.scopes),
                **(extra or {}),
            }
        )

    async def revoke(self, request: Request) -> Response:
        form = await request.form()
        token = str(form.get("token") or request.query_params.get("token", ""))
        grant = self._refresh_tokens.get(token) or self._access_tokens.get(token, (None, 0.0))[0]
        if grant is None or grant.is_revoked:
            raise OAuthError(400, "invalid_token", "Token expired or revoked")
        for other in (*self._refresh_tokens.values(), grant):  # the whole grant of that person and client
            other.is_revoked = other.is_revoked or other.client_id == grant.client_id
        return json_response({})

    async def userinfo(self, request: Request) -> Response:
        grant = self.check_token(request, lambda scope: scope in {EMAIL_SCOPE, "email"})
        user_id, email = grant.account or (self.user_id, self.email)
        return json_response({"id": user_id, "email": email, "verified_email": True, "picture": ""})

    def _issue_refresh_token(self, grant: Grant) -> str:
        token = f"1//0{secrets.token_urlsafe(24)}"
        self._refresh_tokens[token] = grant
        return token

    def _issue_access_token(self, grant: Grant, ttl: float | None) -> str:
        token = f"ya29.{secrets.token_urlsafe(24)}"
        expires_at = time.monotonic() + (self.access_token_ttl if ttl is None else ttl)
        self._access_tokens[token] = (grant, expires_at)
        return token

    def check_token(self, request: Request, is_enough: Callable[[str], bool]) -> Grant:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        grant, expires_at = self._access_tokens.get(token, (None, 0.0))
        if scheme != "Bearer" or grant is None or grant.is_revoked or expires_at <= time.monotonic():
            raise ApiError(401, "authError", "Invalid Credentials")
        if not any(is_enough(scope) for scope in grant.scopes):
            error = ApiError(
                403, "insufficientPermissions", "Request had insufficient authentication scopes."
            )
            detail = {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                "domain": "googleapis.com",
            }
            error.body["error"] |= {"status": "PERMISSION_DENIED", "details": [detail]}
            raise error
        return grant

    def check_calendar_token(self, request: Request) -> Grant:
        return self.check_token(
            request, lambda scope: scope.startswith("https://www.googleapis.com/auth/calendar")
        )
