"""What Google and Microsoft may respond to the calls about push channels."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from app.core.clock import utcnow
from app.core.http import httpx, operator_client
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ClientMisconfigured,
    CredentialsRevoked,
    ProviderError,
    RateLimited,
    Unavailable,
)
from app.providers.google.push import GooglePush
from app.providers.microsoft.push import MicrosoftPush
from app.providers.push import ChannelExists, ChannelUnknown, PushRefused
from tests.fakes.receiver import Receiver, Response
from tests.fakes.server import serve

ADDRESS = "https://calbridge.example/notifications/x"
HTML = b"<html>Service Unavailable</html>"


@dataclass
class Tokens:
    asked: list[str | None] = field(default_factory=list)

    async def get(self, *, rejected: str | None = None) -> str:
        self.asked.append(rejected)
        return f"token{len(self.asked)}"


@dataclass
class World:
    provider: Receiver
    client: httpx.AsyncClient
    tokens: Tokens

    def google(self, calendar_id: str | None = None) -> GooglePush:
        return GooglePush(
            client=self.client, tokens=self.tokens, base_url=self.provider.url, calendar_id=calendar_id
        )

    def microsoft(self, calendar_id: str | None = None) -> MicrosoftPush:
        return MicrosoftPush(
            client=self.client, tokens=self.tokens, base_url=self.provider.url, calendar_id=calendar_id
        )

    def respond(self, status: int, body: object = b"") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.provider.script.append(Response(status, content))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    provider = Receiver()
    async with serve(provider) as provider.url, operator_client() as client:
        yield World(provider, client, Tokens())


def google_error(reason: str) -> dict[str, object]:
    return {"error": {"errors": [{"domain": "global", "reason": reason, "message": "secret"}], "code": 400}}


def graph_error(code: str, message: str = "secret") -> dict[str, object]:
    return {"error": {"code": code, "message": message}}


async def test_google_is_asked_for_a_week_of_a_channel(world: World) -> None:
    world.respond(200, {"resourceId": "ret08u3", "expiration": "1764240000000"})
    opened = await world.google("a/b@group.calendar.google.com").open(
        channel_id="chan-1", secret="s3cret", address=ADDRESS
    )
    assert opened.resource_id == "ret08u3"
    assert opened.expires_at == datetime(2025, 11, 27, 10, 40, tzinfo=UTC)
    [received] = world.provider.received
    assert received.headers["authorization"] == "Bearer token1"
    assert received.json == {
        "id": "chan-1",
        "type": "web_hook",
        "address": ADDRESS,
        "token": "s3cret",
        "params": {"ttl": "604800"},
    }


@pytest.mark.parametrize("expiration", [None, "soon", 10**400, {}])
async def test_a_google_channel_without_a_readable_end_has_the_one_asked_for(
    world: World, expiration: object
) -> None:
    world.respond(200, {"resourceId": "ret08u3", "expiration": expiration})
    opened = await world.google().open(channel_id="chan-1", secret="s3cret", address=ADDRESS)
    assert abs(opened.expires_at - utcnow() - timedelta(days=7)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, google_error("pushNotSupportedForRequestedResource"), PushRefused),
        (400, google_error("push.webhookUrlNotHttps"), ClientMisconfigured),
        (401, google_error("webhookUrlUnauthorized"), ClientMisconfigured),
        (403, google_error("accessNotConfigured"), ClientMisconfigured),
        (403, google_error("insufficientPermissions"), AccessDenied),
        (403, google_error("rateLimitExceeded"), RateLimited),
        (404, google_error("notFound"), CalendarRemoved),
        (400, google_error("channelIdNotUnique"), ProviderError),
        (503, HTML, Unavailable),
        (200, HTML, Unavailable),
        (200, [], Unavailable),
        (200, {}, Unavailable),
        (200, {"resourceId": "nul\0"}, Unavailable),
    ],
)
async def test_what_google_may_respond_to_opening(
    world: World, status: int, body: object, error: type[ProviderError]
) -> None:
    world.respond(status, body)
    with pytest.raises(error) as caught:
        await world.google().open(channel_id="chan-1", secret="s3cret", address=ADDRESS)
    assert type(caught.value) is error
    assert "secret" not in caught.value.message
    assert world.tokens.asked == [None]


async def test_a_token_that_is_refused_is_renewed_once(world: World) -> None:
    for _ in range(2):
        world.respond(401, google_error("authError"))
    with pytest.raises(CredentialsRevoked):
        await world.google().open(channel_id="chan-1", secret="s3cret", address=ADDRESS)
    assert world.tokens.asked == [None, "token1"]


@pytest.mark.parametrize(("status", "error"), [(204, None), (200, None), (404, None), (503, Unavailable)])
async def test_stopping_a_google_channel(
    world: World, status: int, error: type[ProviderError] | None
) -> None:
    world.respond(status, google_error("notFound") if status == 404 else HTML)
    closing = world.google().close(channel_id="chan-1", provider_id=None, resource_id="ret08u3")
    if error is None:
        await closing
    else:
        with pytest.raises(error):
            await closing
    [received] = world.provider.received
    assert received.path == "/calendar/v3/channels/stop"
    assert received.json == {"id": "chan-1", "resourceId": "ret08u3"}


async def test_microsoft_is_asked_for_almost_a_week(world: World) -> None:
    world.respond(201, {"id": "sub-1", "expirationDateTime": "2026-11-27T08:00:00.1234567Z"})
    opened = await world.microsoft("AQMk+/b=").open(channel_id="chan-1", secret="s3cret", address=ADDRESS)
    assert (opened.provider_id, opened.resource_id) == ("sub-1", None)
    assert opened.expires_at == datetime(2026, 11, 27, 8, 0, 0, 123456, tzinfo=UTC)
    sent = world.provider.received[0].json
    asked_for = datetime.fromisoformat(sent.pop("expirationDateTime")) - utcnow()
    assert timedelta(days=6, hours=22) < asked_for < timedelta(days=7)
    assert sent == {
        "changeType": "created,updated,deleted",
        "notificationUrl": ADDRESS,
        "lifecycleNotificationUrl": ADDRESS,
        "resource": "me/calendars/AQMk%2B%2Fb=/events",
        "clientState": "s3cret",
        "latestSupportedTlsVersion": "v1_2",
    }


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (409, graph_error("Conflict"), ChannelExists),
        (400, graph_error("ValidationError", "Subscription validation request failed."), ClientMisconfigured),
        (400, graph_error("InvalidRequest", "Subscription validation request failed."), ClientMisconfigured),
        (400, graph_error("ExtensionError"), ProviderError),
        (403, graph_error("ErrorAccessDenied"), AccessDenied),
        (429, graph_error("TooManyRequests"), RateLimited),
        (404, graph_error("ErrorItemNotFound"), CalendarRemoved),
        (503, HTML, Unavailable),
        (201, HTML, Unavailable),
        (201, {"id": None}, Unavailable),
        (201, {"id": "nul\0"}, Unavailable),
    ],
)
async def test_what_microsoft_may_respond_to_subscribing(
    world: World, status: int, body: object, error: type[ProviderError]
) -> None:
    world.respond(status, body)
    with pytest.raises(error) as caught:
        await world.microsoft().open(channel_id="chan-1", secret="s3cret", address=ADDRESS)
    assert type(caught.value) is error
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, graph_error("ResourceNotFound"), ChannelUnknown),
        (404, graph_error("ErrorItemNotFound"), ChannelUnknown),
        (404, HTML, Unavailable),
        (503, HTML, Unavailable),
        (403, graph_error("ErrorAccessDenied"), AccessDenied),
    ],
)
async def test_what_microsoft_may_respond_to_a_renewal(
    world: World, status: int, body: object, error: type[ProviderError]
) -> None:
    world.respond(status, body)
    with pytest.raises(error):
        await world.microsoft().renew("sub-1", address=ADDRESS)
    assert world.provider.received[0].path == "/subscriptions/sub-1"


async def test_equal_subscriptions_are_found_over_all_pages(world: World) -> None:
    equal = {"notificationUrl": ADDRESS, "resource": "/me/Events"}
    link = f"{world.provider.url}/subscriptions?$skiptoken=1"
    items: list[object] = [
        {"id": "other address", **equal, "notificationUrl": "https://other.example/"},
        {"id": "other calendar", **equal, "resource": "me/calendars/1/events"},
        {"id": "ours", **equal},
        None,
        {**equal},
    ]
    world.respond(200, {"value": items, "@odata.nextLink": link})
    world.respond(200, {"value": [{"id": "ours too", **equal}]})
    assert await world.microsoft().find_equal(address=ADDRESS) == ["ours", "ours too"]


async def test_a_list_of_subscriptions_does_not_lead_the_token_elsewhere(world: World) -> None:
    for link in (f"{world.provider.url}.evil.example/subscriptions", "https://evil.example/subscriptions?a"):
        world.respond(200, {"value": [], "@odata.nextLink": link})
        assert await world.microsoft().find_equal(address=ADDRESS) == []
    assert len(world.provider.received) == 2
