"""The token endpoint of Google: refreshes and errors."""

from typing import Any

import orjson
import pytest

from app.providers.base import (
    AccessDenied,
    ClientMisconfigured,
    CredentialsRevoked,
    ProviderError,
    RateLimited,
    Unavailable,
)
from app.providers.google.oauth import refresh_access_token
from tests.fakes.google import CALENDAR_SCOPE, EMAIL_SCOPE
from tests.integration.providers.google.calendar import World


async def test_a_refresh_gives_a_token_its_lifetime_and_scopes_and_no_new_refresh_token(world: World) -> None:
    fresh = await world.tokens.refresh()
    assert (fresh.expires_in, fresh.refresh_token) == (3599, None)
    assert fresh.scope == f"{CALENDAR_SCOPE} {EMAIL_SCOPE}"
    world.tokens.current = fresh.access_token
    await world.round()
    assert fresh.access_token not in repr(fresh)


async def test_the_faults_of_refused_refreshes_are_distinguished(world: World) -> None:
    fake = world.fake
    assert await refused(world, client_id="nobody") == (ClientMisconfigured, "invalid_client")
    assert await refused(world, client_secret="wrong") == (ClientMisconfigured, "invalid_client")
    assert await refused(world, refresh_token="1//0unknown") == (CredentialsRevoked, "invalid_grant")
    assert await refused(world, refresh_token="") == (ClientMisconfigured, "invalid_request")
    fake.add_client("other", "secret")
    of_other = fake.add_grant(client_id="other")
    assert await refused(world, refresh_token=of_other) == (ClientMisconfigured, "unauthorized_client")
    without_calendar = fake.add_grant(scopes=[EMAIL_SCOPE, "openid"])
    assert await refused(world, refresh_token=without_calendar) == (AccessDenied, "scope_missing")
    fake.revoke_grant(fake.refresh_token)
    assert await refused(world) == (CredentialsRevoked, "invalid_grant")
    fake.delete_client(fake.client_id)
    assert await refused(world) == (ClientMisconfigured, "deleted_client")


async def refused(world: World, **changes: str) -> tuple[type[ProviderError], str]:
    credentials = {
        "client_id": world.fake.client_id,
        "client_secret": world.fake.client_secret,
        "refresh_token": world.fake.refresh_token,
        **changes,
    }
    with pytest.raises(ProviderError) as caught:
        await refresh_access_token(world.client, token_url=f"{world.url}/token", **credentials)
    return type(caught.value), caught.value.code


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": "invalid_grant", "error_description": "Bad Request"}', CredentialsRevoked),
        (400, b'{"error": "invalid_grant", "error_subtype": "invalid_rapt"}', CredentialsRevoked),
        (400, b'{"error": "admin_policy_enforced"}', AccessDenied),
        (403, b'{"error": "deleted_client"}', ClientMisconfigured),
        (400, b'{"error": "invalid_scope"}', ClientMisconfigured),
        (400, b'{"error": "a_new_word", "error_description": "invalid_grant"}', Unavailable),
        (400, b'{"error": {"code": 400, "status": "invalid_grant"}}', Unavailable),
        (400, b"<html>invalid_grant</html>", Unavailable),
        (403, b'{"error": "rate_limit_exceeded"}', RateLimited),
        (429, b"", RateLimited),
        (500, b'{"error": "internal_failure"}', Unavailable),
        (503, b'{"error": "invalid_grant"}', Unavailable),
        (302, b"", Unavailable),
        (200, b"<html>", Unavailable),
        (200, b"[]", Unavailable),
        (200, b'{"access_token": ""}', Unavailable),
        (200, b'{"access_token": "a\\nb"}', Unavailable),
        (200, '{"access_token": "ü"}'.encode(), Unavailable),
    ],
)
async def test_no_response_of_the_token_endpoint_disconnects_by_mistake(
    world: World, status: int, body: bytes, expected: type[ProviderError]
) -> None:
    world.fake.inject_fault("token", status, body=body, headers={"Retry-After": "9"})
    with pytest.raises(ProviderError) as caught:
        await world.tokens.refresh()
    assert type(caught.value) is expected
    if status != 200 and isinstance(caught.value, RateLimited | Unavailable):
        assert caught.value.retry_after == 9.0


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, (3600, None, None)),
        ({"expires_in": "1800", "refresh_token": "1//new"}, (1800, "1//new", None)),
        ({"expires_in": -5, "refresh_token": ""}, (0, None, None)),
        ({"expires_in": None, "scope": ""}, (3600, None, None)),
        ({"expires_in": 7.9, "scope": "email https://www.googleapis.com/auth/calendar"},
         (7, None, "email https://www.googleapis.com/auth/calendar")),
    ],
)  # fmt: skip
async def test_what_a_token_response_leaves_out_has_a_default(
    world: World, extra: dict[str, Any], expected: tuple[int, str | None, str | None]
) -> None:
    world.fake.inject_fault("token", 200, body=orjson.dumps({"access_token": "ya29.x", **extra}))
    fresh = await world.tokens.refresh()
    assert (fresh.expires_in, fresh.refresh_token, fresh.scope) == expected
