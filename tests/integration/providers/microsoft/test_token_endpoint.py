"""The token endpoint of Microsoft: refreshes, scopes and errors."""

from typing import Any

import pytest

from app.providers.base import (
    AccessDenied,
    ClientMisconfigured,
    ConnectionLost,
    CredentialsRevoked,
    ProviderError,
    RateLimited,
    Unavailable,
)
from tests.fakes.microsoft_identity import CALENDAR_SCOPE, USER_SCOPE
from tests.integration.providers.microsoft.calendar import DAY, NOW, World


async def test_a_refresh_gives_an_access_token_and_the_next_refresh_token(world: World) -> None:
    fresh = await world.tokens.refresh()
    assert (fresh.expires_in, fresh.scope) == (3599, "Calendars.Read User.Read")
    assert fresh.refresh_token not in {None, world.fake.refresh_token}
    assert fresh.access_token not in repr(fresh)
    await world.tokens.refresh()
    # The replaced one still works, for a worker that does not have the new one yet.
    await world.tokens.refresh(refresh_token=world.fake.refresh_token)


async def test_a_response_without_a_refresh_token_leaves_the_old_one_in_use(world: World) -> None:
    world.fake.omits_refresh_token = True
    assert (await world.tokens.refresh()).refresh_token is None


async def test_rotation_can_be_strict(world: World) -> None:
    world.fake.late_uses_allowed = 1
    await world.tokens.refresh()
    await world.tokens.refresh(refresh_token=world.fake.refresh_token)
    with pytest.raises(CredentialsRevoked):
        await world.tokens.refresh(refresh_token=world.fake.refresh_token)


async def test_a_refresh_token_that_is_not_used_for_90_days_expires(world: World) -> None:
    world.fake.now = lambda: NOW + 89 * DAY
    await world.tokens.refresh()
    world.fake.now = lambda: NOW + 170 * DAY
    await world.tokens.refresh()
    world.fake.now = lambda: NOW + 261 * DAY
    with pytest.raises(CredentialsRevoked) as caught:
        await world.tokens.refresh()
    assert caught.value.code == "invalid_grant"
    assert "90 days" in caught.value.message


@pytest.mark.parametrize("style", ["short", "url", "lower"])
@pytest.mark.parametrize("scope", [CALENDAR_SCOPE, "Calendars.ReadWrite", "Calendars.Read.Shared"])
async def test_the_calendar_scope_is_known_in_every_spelling(world: World, style: Any, scope: str) -> None:
    world.fake.scope_style = style
    token = world.fake.add_grant(scopes=[USER_SCOPE, scope, "offline_access"])
    assert (await world.tokens.refresh(refresh_token=token)).access_token


async def test_a_grant_without_the_calendar_scope_is_refused(world: World) -> None:
    for scopes in ([USER_SCOPE], ["Calendars.ReadBasic"], ["Mail.Read", "MyCalendars.Read"]):
        token = world.fake.add_grant(scopes=scopes)
        with pytest.raises(AccessDenied) as caught:
            await world.tokens.refresh(refresh_token=token)
        assert caught.value.code == "scope_missing"


@pytest.mark.parametrize(
    ("error", "number", "kind", "code"),
    [
        ("invalid_grant", 50173, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 700082, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 50057, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 65001, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 9002313, CredentialsRevoked, "invalid_grant"),
        ("interaction_required", 50076, CredentialsRevoked, "interaction_required"),
        ("interaction_required", 53003, CredentialsRevoked, "interaction_required"),
        ("login_required", 50058, CredentialsRevoked, "login_required"),
        ("consent_required", 99, CredentialsRevoked, "consent_required"),
        ("unauthorized_client", 700016, ClientMisconfigured, "unauthorized_client"),
        ("invalid_request", 50194, ClientMisconfigured, "invalid_request"),
        ("invalid_client", 7000215, ClientMisconfigured, "invalid_client"),
        ("invalid_client", 7000222, ClientMisconfigured, "invalid_client"),
        # The number says that the app is at fault, although the error code does not.
        ("invalid_grant", 7000222, ClientMisconfigured, "invalid_client"),
        ("invalid_scope", 70011, ClientMisconfigured, "invalid_scope"),
        ("access_denied", 65004, AccessDenied, "access_denied"),
        ("invalid_grant", 50196, RateLimited, "request_loop"),
        ("temporarily_unavailable", 90033, Unavailable, "unavailable"),
        ("server_error", 90033, Unavailable, "unavailable"),
        ("something_new", 12345, Unavailable, "unavailable"),
    ],
)
async def test_errors_of_the_token_endpoint_are_distinguished_by_their_word_and_number(
    world: World, error: str, number: int, kind: type[ProviderError], code: str
) -> None:
    world.fake.fail_token(error, number)
    with pytest.raises(kind) as caught:
        await world.tokens.refresh()
    assert (type(caught.value), caught.value.code) == (kind, code)
    if isinstance(caught.value, ConnectionLost):
        assert caught.value.message.endswith(f"({error})")
    assert "Trace" not in caught.value.message
    assert world.fake.client_secret not in caught.value.message


async def test_the_state_of_the_app_registration_is_the_operators_concern(world: World) -> None:
    single = "single-tenant-app"
    world.fake.add_client(single, "secret", tenant_id=world.fake.tenant_id)
    token = world.fake.add_grant(client_id=single)
    with pytest.raises(ClientMisconfigured) as caught:
        await world.tokens.refresh(client_id=single, client_secret="secret", refresh_token=token)
    assert "single-tenant" in caught.value.message
    own_tenant = f"{world.url}/{world.fake.tenant_id}/oauth2/v2.0/token"
    await world.tokens.refresh(
        token_url=own_tenant, client_id=single, client_secret="secret", refresh_token=token
    )
    world.fake.client().is_secret_expired = True
    with pytest.raises(ClientMisconfigured) as caught:
        await world.tokens.refresh()
    assert "expired" in caught.value.message
    world.fake.delete_client(world.fake.client_id)
    with pytest.raises(ClientMisconfigured):
        await world.tokens.refresh()


@pytest.mark.parametrize(
    ("fault", "kind", "retry_after"),
    [
        ({"status": 429, "headers": {"Retry-After": "9"}}, RateLimited, 9),
        ({"status": 503, "body": b"<html>Down</html>", "headers": {"Retry-After": "5"}}, Unavailable, 5),
        ({"status": 400, "body": b"<html>Proxy</html>"}, Unavailable, None),
        ({"status": 500, "body": b'{"error": "invalid_grant"}'}, Unavailable, None),
        ({"status": 200, "body": b"<html>Sign in to this network</html>"}, Unavailable, None),
        ({"status": 200, "body": b'{"access_token": "a\\nb"}'}, Unavailable, None),
        ({"kind": "reset"}, Unavailable, None),
    ],
)
async def test_outages_of_the_token_endpoint_disconnect_no_calendar(
    world: World, fault: Any, kind: type[RateLimited | Unavailable], retry_after: float | None
) -> None:
    world.fake.inject_fault("token", **fault)
    with pytest.raises(kind) as caught:
        await world.tokens.refresh()
    assert caught.value.retry_after == retry_after
