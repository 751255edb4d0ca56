"""Microsoft's token endpoint, identity platform v2 (docs/reference/microsoft.md, "Token endpoint")."""

import re
from collections.abc import Mapping
from typing import Any

from app.core.fetch import retry_after
from app.core.http import httpx
from app.providers.base import (
    AccessDenied,
    ClientMisconfigured,
    CredentialsRevoked,
    FreshToken,
    ProviderError,
    RateLimited,
    Unavailable,
)
from app.providers.token_endpoint import refresh

_LOOP_PAUSE_SECONDS = 3600.0
# `.default` stands for whatever the app registration lists, which the response then does not spell out.
_CALENDAR_SCOPES = frozenset(
    {
        "calendars.read",
        "calendars.readwrite",
        "calendars.read.shared",
        "calendars.readwrite.shared",
        ".default",
    }
)

_DEAD_GRANT = frozenset({"invalid_grant", "interaction_required", "login_required", "consent_required"})
_CLIENT_FAULTS = frozenset(
    {
        "invalid_client",
        "unauthorized_client",
        "invalid_request",
        "invalid_scope",
        "invalid_resource",
        "unsupported_grant_type",
        "unsupported_response_type",
    }
)
# AADSTS numbers may change ("Token errors"): they only decide who has to act, and give better words.
_OPERATOR_FAULTS = {
    50011: "the redirect address is not registered",
    50194: "the app is single-tenant; make it multi-tenant, or use its tenant's token address",
    650052: "the app lacks the service principal of a service that it asks for",
    650057: "a permission is missing in the app registration",
    70001: "the app is disabled or not found",
    70002: "the client secret is wrong",
    700011: "the app is not found in the tenant",
    700016: "the app is not found in the tenant",
    700025: "the app is registered as a public client, which has no secret",
    7000112: "the app is disabled",
    7000215: "the client secret is wrong",
    7000222: "the client secret has expired",
    90002: "the tenant is not found",
    900023: "the tenant is not valid",
}
_REQUEST_LOOP = 50196
_PERSON_FAULTS = {
    50020: "This account is not known in the organisation.",
    50034: "This account does not exist any more.",
    50053: "This account is locked.",
    50055: "The account's password has expired.",
    50057: "This account is disabled.",
    50058: "Microsoft wants this person to sign in again.",
    50074: "Microsoft wants a second factor from this person.",
    50076: "Microsoft wants a second factor from this person.",
    50078: "Microsoft wants a second factor from this person.",
    50079: "Microsoft wants this person to set up a second factor.",
    50105: "An administrator has not assigned this person to the app.",
    50173: "The password was changed, or all sessions were signed out.",
    53000: "The organisation's access rules do not allow this connection.",
    53001: "The organisation's access rules do not allow this connection.",
    53003: "The organisation's access rules do not allow this connection.",
    65001: "The app's access was not granted, or was taken back.",
    65004: "The person declined to give access.",
    70008: "The grant has expired.",
    70043: "The organisation's rules made the grant expire.",
    700082: "The grant was not used for 90 days and has expired.",
    90072: "This account is not known in the organisation.",
    90094: "An administrator has to allow the app.",
}
_NUMBER = re.compile(r"AADSTS(\d{5,9})")


async def refresh_access_token(
    client: httpx.AsyncClient, *, token_url: str, client_id: str, client_secret: str, refresh_token: str
) -> FreshToken:
    """Refresh an access token; nearly always with a new refresh token, which replaces the old one.

    No `scope` is sent: one that is narrower or other than what was consented to would be refused.
    Raises CredentialsRevoked (the grant is dead), ClientMisconfigured (client id, secret, registration or request),
    AccessDenied (`scope_missing`: the person did not grant the calendar; `access_denied`), RateLimited,
    Unavailable. No message holds anything that was sent or received, save the error's word and number.
    """
    return await refresh(
        client,
        provider="Microsoft",
        token_url=token_url,
        client_id=client_id,
        client_secret=client_secret,
        refresh_token=refresh_token,
        classify=classify_token_error,
        reads_calendars=_reads_calendars,
    )


def classify_token_error(status: int, fields: Mapping[str, Any], headers: Mapping[str, str]) -> ProviderError:
    """The error for a response that is not 200; `fields` is its JSON object, or empty."""
    word = fields.get("error")
    if status == 429:
        return RateLimited("Microsoft's token endpoint asks to slow down.", retry_after=retry_after(headers))
    if isinstance(word, str) and 400 <= status < 500:
        found = _classify_refusal(word, _numbers(fields))
        if found is not None:
            return found
    # A response that says nothing clear about the grant must not disconnect the calendar.
    return Unavailable(
        f"Microsoft's token endpoint returned HTTP status {status}.", retry_after=retry_after(headers)
    )


def _classify_refusal(word: str, numbers: list[int]) -> ProviderError | None:
    if _REQUEST_LOOP in numbers:
        return RateLimited(
            "Microsoft's token endpoint was asked too often for the same.",
            code="request_loop",
            retry_after=_LOOP_PAUSE_SECONDS,
        )
    operator_fault = next((number for number in numbers if number in _OPERATOR_FAULTS), None)
    if operator_fault is not None:
        return ClientMisconfigured(
            f"Microsoft refuses the OAuth client: {_OPERATOR_FAULTS[operator_fault]} (AADSTS{operator_fault}).",
            code=word if word in _CLIENT_FAULTS else "invalid_client",
        )
    if word in _CLIENT_FAULTS:
        return ClientMisconfigured(
            f"Microsoft refuses the OAuth client or its request ({word}): check client_id and client_secret.",
            code=word,
        )
    if word in _DEAD_GRANT:
        reason = next(
            (_PERSON_FAULTS[number] for number in numbers if number in _PERSON_FAULTS),
            "Microsoft does not accept the refresh token any more.",
        )
        return CredentialsRevoked(f"{reason} Connect the calendar again ({word})", code=word, is_final=True)
    if word == "access_denied":
        return AccessDenied(
            f"Access to the calendar was refused in the Microsoft account ({word})", code=word, is_final=True
        )
    return None


def _numbers(fields: Mapping[str, Any]) -> list[int]:
    """The AADSTS numbers of an error; from the description only where the list of them is missing."""
    codes = fields.get("error_codes")
    if isinstance(codes, list):
        return [code for code in codes if isinstance(code, int)]
    description = fields.get("error_description")
    return [int(number) for number in _NUMBER.findall(description)] if isinstance(description, str) else []


def _reads_calendars(scope: str) -> bool:
    """Whether a scope reads calendars, with or without its prefix, in any case ("Scopes")."""
    return scope.rpartition("/")[2].casefold() in _CALENDAR_SCOPES
