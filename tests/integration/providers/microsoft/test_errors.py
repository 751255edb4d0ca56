"""Errors of Microsoft Graph and refused access tokens."""

import traceback
from typing import Any

import pytest

from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    CredentialsRevoked,
    CursorExpired,
    ProviderError,
    RateLimited,
    Unavailable,
)
from app.providers.microsoft import client as microsoft_client
from tests.fakes.microsoft_identity import USER_SCOPE
from tests.integration.providers.microsoft.calendar import NOW, World, add, on_nth


async def test_an_expired_access_token_is_renewed_once_between_pages(world: World) -> None:
    world.fake.seed(5, start=NOW)
    world.fake.on_request = on_nth("calendarView", 2, world.fake.expire_access_tokens)
    assert len((await world.round(page_size=2)).events) == 5
    assert len(world.tokens.given) == 2


async def test_a_token_that_is_refused_even_when_fresh_is_a_dead_grant(world: World) -> None:
    world.fake.inject_fault("delta", 401, "InvalidAuthenticationToken", count=2)
    with pytest.raises(CredentialsRevoked):
        await world.round()
    assert len(world.fake.requests_to("delta")) == 2


async def test_a_claims_challenge_asks_the_person_to_sign_in_again(world: World) -> None:
    world.fake.mailbox().asks_for_claims = True
    with pytest.raises(CredentialsRevoked) as caught:
        await world.round()
    assert caught.value.code == "conditional_access"


async def test_a_grant_without_the_calendar_is_refused_by_graph_too(world: World) -> None:
    world.tokens.current = world.fake.issue_access_token(
        refresh_token=world.fake.add_grant(scopes=[USER_SCOPE])
    )
    with pytest.raises(AccessDenied):
        await world.round()


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "kind", "code"),
    [
        (
            (404, "MailboxNotEnabledForRESTAPI", "REST API is not yet supported for this mailbox."),
            AccessDenied,
            "mailbox_not_enabled",
        ),
        (
            (404, "ResourceNotFound", "Resource could not be discovered."),
            CalendarRemoved,
            "mailbox_not_enabled",
        ),
        ((403, "ErrorAccessDenied", "Access is denied."), AccessDenied, "access_denied"),
        ((404, "ErrorItemNotFound", "Not found."), CalendarRemoved, "calendar_gone"),
        ((503, "ErrorMailboxMoveInProgress", "Moving."), Unavailable, "mailbox_moving"),
        ((503, "ServiceUnavailable", "Later."), Unavailable, "unavailable"),
        ((429, "TooManyRequests", "Slow down."), RateLimited, "rate_limited"),
    ],
)
async def test_refusals_of_a_mailbox_are_distinguished_by_their_kind(
    world: World, refusal: tuple[int, str, str], kind: type[ProviderError], code: str
) -> None:
    cursor = await world.cursor()
    world.fake.mailbox().refusal = refusal
    with pytest.raises(kind) as caught:
        await world.round()
    assert (type(caught.value), caught.value.code) == (kind, code)
    with pytest.raises(CursorExpired if kind is CalendarRemoved else kind):
        await world.round(cursor)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "body": b"<html>Service Unavailable</html>"},
        {"status": 404, "body": b"<html>Not Found</html>"},
        {"status": 200, "body": b"<html>Sign in to this network</html>"},
        {"status": 200, "body": b'{"value": null}', "content_type": "application/json"},
        {"status": 200, "body": b"[]", "content_type": "application/json"},
        {"status": 302, "body": b"", "headers": {"Location": "https://elsewhere.example/"}},
        {"kind": "reset"},
        {"kind": "cut"},
    ],
)
async def test_an_outage_is_never_taken_for_an_empty_or_lost_calendar(world: World, fault: Any) -> None:
    add(world.fake)
    world.fake.inject_fault("calendarView", count=8, **fault)  # smaller pages are tried, too
    with pytest.raises(Unavailable):
        await world.round()


async def test_a_response_that_dribbles_does_not_hold_the_worker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_DEADLINE_SECONDS", 0.05)
    world.fake.inject_fault("calendarView", kind="dribble", count=8)
    with pytest.raises(Unavailable) as caught:
        await world.round()
    assert caught.value.code == "timeout"


async def test_errors_hold_neither_tokens_nor_links(world: World) -> None:
    cursor = await world.cursor()
    token = world.tokens.current
    assert token is not None
    for kind in ("reset", "cut"):
        world.fake.inject_fault("*", kind=kind, count=2)
        with pytest.raises(Unavailable) as caught:
            await world.round(cursor)
        text = "".join(traceback.format_exception(caught.value))
        assert token not in text
        assert "deltatoken" not in text
