"""The fake Google itself: that it refuses what the real one refuses (docs/reference/google.md)."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.http import httpx, operator_client
from tests.fakes.google import CALENDAR_SCOPE, EMAIL_SCOPE, FakeGoogle
from tests.fakes.server import serve

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
EVENTS = "/calendar/v3/calendars/primary/events"
CALLBACK = "https://app.example/oauth/google/callback"


class Api:
    """A signed-in client of the fake."""

    def __init__(self, fake: FakeGoogle, client: httpx.AsyncClient, url: str) -> None:
        self.fake = fake
        self.client = client
        self.url = url
        self.headers = {"Authorization": f"Bearer {fake.issue_access_token()}"}

    async def get(self, path: str, *, if_none_match: str = "", **params: str) -> httpx.Response:
        headers = {**self.headers, "If-None-Match": if_none_match} if if_none_match else self.headers
        return await self.client.get(self.url + path, params=params, headers=headers)

    async def post(self, path: str, body: Any) -> httpx.Response:
        return await self.client.post(self.url + path, json=body, headers=self.headers)

    async def token(self, **form: str) -> httpx.Response:
        credentials = {"client_id": self.fake.client_id, "client_secret": self.fake.client_secret}
        return await self.client.post(f"{self.url}/token", data={**credentials, **form})


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    fake = FakeGoogle()
    fake.now = lambda: NOW
    async with serve(fake) as url, operator_client(timeout=5.0) as client:
        yield Api(fake, client, url)


# --- lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"singleevents": "true"}, "invalidParameter"),
        ({"singleEvents": "True"}, "invalidParameter"),
        ({"maxResults": "0"}, "invalidParameter"),
        ({"maxResults": "many"}, "invalidParameter"),
        ({"orderBy": "start"}, "invalidParameter"),
        ({"orderBy": "startTime"}, "badRequest"),
        ({"eventTypes": "meeting"}, "invalidParameter"),
        ({"timeMin": "2026-11-20T00:00:00"}, "badRequest"),
        ({"timeMin": "2026-11-21T00:00:00Z", "timeMax": "2026-11-20T00:00:00Z"}, "timeRangeEmpty"),
        ({"pageToken": "unknown"}, "invalid"),
    ],
)
async def test_parameters_outside_the_matrix_are_refused(
    api: Api, params: dict[str, str], reason: str
) -> None:
    response = await api.get(EVENTS, **params)
    assert response.status_code == 400
    assert response.json()["error"]["errors"][0]["reason"] == reason


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({"timeMin": "2026-11-20T00:00:00Z"}, 400),
        ({"timeMax": "2026-11-20T00:00:00Z"}, 400),
        ({"updatedMin": "2026-11-20T00:00:00Z"}, 400),
        ({"orderBy": "updated"}, 400),
        ({"q": "x"}, 400),
        ({"iCalUID": "x"}, 400),
        ({"privateExtendedProperty": "a=b"}, 400),
        ({"sharedExtendedProperty": "a=b"}, 400),
        ({"showDeleted": "false"}, 400),
        ({"timeZone": "UTC"}, 400),
        ({"singleEvents": "false"}, 400),
        ({"maxResults": "7"}, 200),
        ({}, 200),
    ],
)
async def test_a_sync_token_goes_with_the_parameters_that_it_was_made_with(
    api: Api, extra: dict[str, str], status: int
) -> None:
    first = await api.get(EVENTS, singleEvents="true", timeMin="2026-11-20T00:00:00Z")
    params = {"singleEvents": "true", "syncToken": first.json()["nextSyncToken"], **extra}
    assert (await api.get(EVENTS, **params)).status_code == status


async def test_the_token_of_one_calendar_is_no_good_for_another(api: Api) -> None:
    api.fake.add_calendar("team")
    token = (await api.get(EVENTS)).json()["nextSyncToken"]
    assert (await api.get("/calendar/v3/calendars/team/events", syncToken=token)).status_code == 410


async def test_a_page_token_belongs_to_all_other_parameters(api: Api) -> None:
    api.fake.seed(5, start=NOW)
    page_token = (await api.get(EVENTS, maxResults="2")).json()["nextPageToken"]
    assert (await api.get(EVENTS, maxResults="2", pageToken=page_token)).status_code == 200
    assert (await api.get(EVENTS, maxResults="3", pageToken=page_token)).status_code == 400


async def test_ordered_lists_give_no_sync_token_and_too_many_results_are_clamped(api: Api) -> None:
    api.fake.seed(2_600, start=NOW)
    ordered = (await api.get(EVENTS, singleEvents="true", orderBy="startTime", maxResults="9999")).json()
    assert len(ordered["items"]) == 2500
    last = await api.get(
        EVENTS,
        singleEvents="true",
        orderBy="startTime",
        maxResults="9999",
        pageToken=ordered["nextPageToken"],
    )
    assert "nextSyncToken" not in last.json()


async def test_unexpanded_lists_hold_masters_and_exceptions(api: Api) -> None:
    series = api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=5", series_id="daily")
    api.fake.update_event("daily_20261121T120000Z", summary="Other")
    api.fake.delete_event("daily_20261122T120000Z")
    items = (await api.get(EVENTS)).json()["items"]
    assert [(item["id"], item["status"]) for item in items] == [
        (series, "confirmed"),
        ("daily_20261121T120000Z", "confirmed"),
        ("daily_20261122T120000Z", "cancelled"),
    ]
    assert items[0]["recurrence"] == ["RRULE:FREQ=DAILY;COUNT=5"]
    assert len((await api.get(EVENTS, singleEvents="true")).json()["items"]) == 4
    assert len((await api.get(EVENTS, singleEvents="true", showDeleted="true")).json()["items"]) == 5


async def test_an_edited_series_keeps_its_exceptions_and_cancels_what_is_left_out(api: Api) -> None:
    api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=4", series_id="daily")
    api.fake.update_event("daily_20261121T120000Z", summary="Other")
    token = (await api.get(EVENTS, singleEvents="true")).json()["nextSyncToken"]
    api.fake.update_series("daily", rrule="FREQ=DAILY;COUNT=3", exdates=[NOW], summary="New")
    items = (await api.get(EVENTS, singleEvents="true", syncToken=token)).json()["items"]
    assert {item["id"]: item.get("summary") for item in items if item["status"] == "confirmed"} == {
        "daily_20261121T120000Z": "Other",
        "daily_20261122T120000Z": "New",
    }
    cancelled = {item["id"] for item in items if item["status"] == "cancelled"}
    assert cancelled == {"daily_20261120T120000Z", "daily_20261123T120000Z"}


async def test_filters_and_updated_min(api: Api) -> None:
    api.fake.add_event(
        start=NOW, end=NOW + HOUR, event_id="a", summary="Lunch", extendedProperties={"private": {"k": "v"}}
    )
    api.fake.add_event(start=NOW, end=NOW + HOUR, event_id="b", eventType="focusTime")
    for params, expected in (
        ({"q": "lunch"}, ["a"]),
        ({"iCalUID": "b@google.com"}, ["b"]),
        ({"eventTypes": "focusTime"}, ["b"]),
        ({"privateExtendedProperty": "k=v"}, ["a"]),
        ({"updatedMin": "2026-11-20T11:00:00Z", "orderBy": "updated"}, ["a", "b"]),
        ({"updatedMin": "2026-11-20T13:00:00Z"}, []),
    ):
        assert [item["id"] for item in (await api.get(EVENTS, **params)).json()["items"]] == expected
    assert (await api.get(EVENTS, updatedMin="2026-09-20T11:00:00Z")).status_code == 410


async def test_etags_return_304_until_something_changes(api: Api) -> None:
    api.fake.add_event(start=NOW, end=NOW + HOUR, event_id="a")
    for path in (EVENTS, f"{EVENTS}/a"):
        first = await api.get(path)
        again = await api.get(path, if_none_match=first.headers["ETag"])
        assert (again.status_code, again.content) == (304, b"")
    api.fake.update_event("a", summary="New")
    for path in (EVENTS, f"{EVENTS}/a"):
        assert (await api.get(path, if_none_match=first.headers["ETag"])).status_code == 200
    assert (await api.get(f"{EVENTS}/unknown")).status_code == 404


async def test_tokens_can_be_expired_over_http_too(api: Api) -> None:
    token = (await api.get(EVENTS)).json()["nextSyncToken"]
    assert (await api.post("/_fake/expire_tokens", {})).status_code == 204
    assert (await api.get(EVENTS, syncToken=token)).status_code == 410


# --- OAuth -----------------------------------------------------------------------------------------------


def verifier_and_challenge() -> tuple[str, str]:
    verifier = "v" * 50
    return verifier, base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(
        b"="
    ).decode()


async def authorize(api: Api, **changes: str) -> httpx.Response:
    params = {
        "client_id": api.fake.client_id,
        "redirect_uri": CALLBACK,
        "response_type": "code",
        "scope": f"{CALENDAR_SCOPE} {EMAIL_SCOPE}",
        "access_type": "offline",
        "prompt": "consent",
        "state": "s/1",
        **changes,
    }
    return await api.client.get(f"{api.url}/o/oauth2/v2/auth", params=params)


async def code_of(api: Api, **changes: str) -> str:
    response = await authorize(api, **changes)
    assert response.status_code == 302
    return parse_qs(urlsplit(response.headers["Location"]).query)["code"][0]


@pytest.fixture
def registered(api: Api) -> Api:
    api.fake.add_client(api.fake.client_id, api.fake.client_secret, redirect_uris=[CALLBACK])
    return api


async def test_a_person_consents_and_the_code_is_exchanged_once(registered: Api) -> None:
    verifier, challenge = verifier_and_challenge()
    response = await authorize(registered, code_challenge=challenge, code_challenge_method="S256")
    back = parse_qs(urlsplit(response.headers["Location"]).query)
    assert response.headers["Location"].startswith(f"{CALLBACK}?")
    assert back["state"] == ["s/1"]
    form = {
        "grant_type": "authorization_code",
        "code": back["code"][0],
        "redirect_uri": CALLBACK,
        "code_verifier": verifier,
    }
    granted = (await registered.token(**form)).json()
    assert granted["refresh_token"].startswith("1//0")
    assert (await registered.token(**form)).json()["error"] == "invalid_grant"
    refreshed = (
        await registered.token(grant_type="refresh_token", refresh_token=granted["refresh_token"])
    ).json()
    assert "refresh_token" not in refreshed
    headers = {"Authorization": f"Bearer {refreshed['access_token']}"}
    info = (await registered.client.get(f"{registered.url}/oauth2/v2/userinfo", headers=headers)).json()
    assert (info["id"], info["email"]) == (registered.fake.user_id, "ada@example.com")


@pytest.mark.parametrize(
    "changes",
    [{"code_verifier": "w" * 50}, {"code_verifier": ""}, {"redirect_uri": CALLBACK + "/"}, {"code": "4/x"}],
)
async def test_an_exchange_that_does_not_fit_its_request_is_refused(
    registered: Api, changes: dict[str, str]
) -> None:
    verifier, challenge = verifier_and_challenge()
    code = await code_of(registered, code_challenge=challenge, code_challenge_method="S256")
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": CALLBACK,
        "code_verifier": verifier,
    }
    assert (await registered.token(**{**form, **changes})).status_code == 400


async def test_a_refresh_token_comes_on_first_consent_or_when_consent_is_forced(registered: Api) -> None:
    given = []
    for changes in ({"prompt": "none"}, {"prompt": "none"}, {"prompt": "consent"}, {"access_type": "online"}):
        form = {
            "grant_type": "authorization_code",
            "code": await code_of(registered, **changes),
            "redirect_uri": CALLBACK,
        }
        given.append("refresh_token" in (await registered.token(**form)).json())
    assert given == [True, False, True, False]


async def test_a_person_may_refuse_or_untick_the_calendar(registered: Api) -> None:
    registered.fake.granted_scopes = (EMAIL_SCOPE,)
    form = {"grant_type": "authorization_code", "code": await code_of(registered), "redirect_uri": CALLBACK}
    assert (await registered.token(**form)).json()["scope"] == EMAIL_SCOPE
    registered.fake.denies_consent = True
    assert "error=access_denied&state=s%2F1" in (await authorize(registered)).headers["Location"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"client_id": "nobody"}, 401),
        ({"redirect_uri": "https://evil.example/"}, 400),
        ({"response_type": "token"}, 400),
        ({"code_challenge": "x", "code_challenge_method": "plain"}, 400),
    ],
)
async def test_a_wrong_authorize_request_never_reaches_the_callback(
    registered: Api, changes: dict[str, str], status: int
) -> None:
    response = await authorize(registered, **changes)
    assert (response.status_code, "Location" in response.headers) == (status, False)


async def test_revoking_ends_the_whole_grant(api: Api) -> None:
    access_token = api.headers["Authorization"].removeprefix("Bearer ")
    revoked = await api.client.post(f"{api.url}/revoke", data={"token": access_token})
    assert (revoked.status_code, revoked.json()) == (200, {})
    assert (await api.get(EVENTS)).status_code == 401
    refresh = await api.token(grant_type="refresh_token", refresh_token=api.fake.refresh_token)
    assert refresh.json()["error"] == "invalid_grant"
    assert (await api.client.post(f"{api.url}/revoke", data={"token": access_token})).status_code == 400


# --- push ------------------------------------------------------------------------------------------------


class Receiver:
    """A notification endpoint. It responds with the statuses in `responses`, then with 204."""

    def __init__(self) -> None:
        self.address = ""
        self.got: list[dict[str, str]] = []
        self.responses: list[int] = []
        self.app = Starlette(routes=[Route("/hook", self._receive, methods=["POST"])])

    async def _receive(self, request: Request) -> Response:
        assert await request.body() == b""
        self.got.append(dict(request.headers))
        return Response(status_code=self.responses.pop(0) if self.responses else 204)

    def states(self) -> list[str]:
        return [headers["x-goog-resource-state"] for headers in self.got]


@pytest.fixture
async def receiver(api: Api) -> AsyncIterator[Receiver]:
    found = Receiver()
    api.fake.allow_http_push = True
    async with serve(found.app) as url:
        found.address = f"{url}/hook"
        yield found
        await api.fake.deliver_notifications()


async def watch(api: Api, receiver: Receiver, **changes: Any) -> httpx.Response:
    body = {"id": "channel-1", "type": "web_hook", "address": receiver.address, "token": "secret", **changes}
    return await api.post(f"{EVENTS}/watch", body)


async def test_a_channel_notifies_of_each_batch_of_changes_until_it_is_stopped(
    api: Api, receiver: Receiver
) -> None:
    api.fake.sync_message_first = True
    channel = (await watch(api, receiver)).json()
    assert receiver.states() == ["sync"]
    assert receiver.got[0]["x-goog-message-number"] == "1"
    assert receiver.got[0]["x-goog-channel-token"] == "secret"
    api.fake.add_event(start=NOW, end=NOW + HOUR, event_id="a")
    api.fake.delete_event("a")
    await api.fake.deliver_notifications()
    assert receiver.states() == ["sync", "exists"]
    assert int(receiver.got[1]["x-goog-message-number"]) > 1
    api.fake.revoke_grant(api.fake.refresh_token)
    api.fake.seed(3, start=NOW)
    await api.fake.deliver_notifications()
    assert receiver.states() == ["sync", "exists", "exists"]
    other = api.fake.add_grant()
    api.headers = {"Authorization": f"Bearer {api.fake.issue_access_token(refresh_token=other)}"}
    stop = {"id": channel["id"], "resourceId": channel["resourceId"]}
    assert (await api.post("/calendar/v3/channels/stop", {**stop, "resourceId": "x"})).status_code == 404
    assert (await api.post("/calendar/v3/channels/stop", stop)).status_code == 204
    assert (await api.post("/calendar/v3/channels/stop", stop)).status_code == 404
    api.fake.seed(3, start=NOW, prefix="more")
    await api.fake.deliver_notifications()
    assert len(receiver.got) == 3


async def test_notifications_are_retried_doubled_and_lost(api: Api, receiver: Receiver) -> None:
    receiver.responses = [503, 500]
    await watch(api, receiver)
    await api.fake.deliver_notifications()
    assert receiver.states() == ["sync"] * 3
    receiver.responses = [404]
    api.fake.duplicate_notifications = True
    api.fake.seed(1, start=NOW)
    await api.fake.deliver_notifications()
    assert receiver.states() == ["sync"] * 3 + ["exists"] * 2
    api.fake.lost_notifications = 1
    api.fake.seed(1, start=NOW)
    await api.fake.deliver_notifications()
    assert len(receiver.got) == 5


async def test_an_expired_channel_is_silent_and_unknown(api: Api, receiver: Receiver) -> None:
    channel = (await watch(api, receiver, params={"ttl": "9999999"})).json()
    await api.fake.deliver_notifications()
    assert int(channel["expiration"]) == int((NOW + timedelta(days=7)).timestamp() * 1000)
    api.fake.now = lambda: NOW + timedelta(days=8)
    api.fake.seed(1, start=NOW)
    await api.fake.deliver_notifications()
    assert receiver.states() == ["sync"]
    stop = {"id": channel["id"], "resourceId": channel["resourceId"]}
    assert (await api.post("/calendar/v3/channels/stop", stop)).status_code == 404


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "a b"}, "required"),
        ({"id": "x" * 65}, "required"),
        ({"type": "mail"}, "unknownChannelType"),
        ({"address": "ftp://x"}, "required"),
        ({"token": "x" * 257}, "invalidParameter"),
    ],
)
async def test_wrong_watch_requests_are_refused(
    api: Api, receiver: Receiver, changes: dict[str, Any], reason: str
) -> None:
    response = await watch(api, receiver, **changes)
    assert (response.status_code, response.json()["error"]["errors"][0]["reason"]) == (400, reason)


async def test_channels_are_unique_https_and_not_for_every_calendar(api: Api, receiver: Receiver) -> None:
    await watch(api, receiver)
    reasons = [(await watch(api, receiver)).json()["error"]["errors"][0]["reason"]]
    api.fake.allow_http_push = False
    reasons.append((await watch(api, receiver, id="2")).json()["error"]["errors"][0]["reason"])
    api.fake.push_unsupported.add(api.fake.email)
    reasons.append((await watch(api, receiver, id="3")).json()["error"]["errors"][0]["reason"])
    assert reasons == [
        "channelIdNotUnique",
        "push.webhookUrlNotHttps",
        "pushNotSupportedForRequestedResource",
    ]


# --- the server that runs fakes --------------------------------------------------------------------------


async def test_a_server_ends_at_once_whatever_is_under_way() -> None:
    started = asyncio.Event()

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        if scope["type"] == "http":
            started.set()
            await asyncio.sleep(60)

    async with operator_client(timeout=5.0) as client:
        async with serve(app) as url:
            waiting = asyncio.create_task(client.get(url))
            await started.wait()
        with pytest.raises(httpx.TransportError):
            await waiting
