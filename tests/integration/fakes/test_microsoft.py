"""The fake Microsoft itself: that it refuses what the real one refuses (docs/reference/microsoft.md)."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.core.http import httpx, operator_client
from tests.fakes.microsoft import EXPIRED_SPELLINGS, FakeMicrosoft
from tests.fakes.microsoft_identity import CALENDAR_SCOPE
from tests.fakes.microsoft_store import default_id, occurrence_id
from tests.fakes.server import serve

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WINDOW = {"startDateTime": "2026-11-19T00:00:00Z", "endDateTime": "2026-12-18T00:00:00Z"}
IMMUTABLE = 'IdType="ImmutableId"'
CALLBACK = "https://app.example/oauth/microsoft/callback"
VIEW, DELTA = "/v1.0/me/calendarView", "/v1.0/me/calendarView/delta"


class Api:
    """A signed-in client of the fake."""

    def __init__(self, fake: FakeMicrosoft, client: httpx.AsyncClient, url: str) -> None:
        self.fake = fake
        self.client = client
        self.url = url
        self.headers = {"Authorization": f"Bearer {fake.issue_access_token()}"}

    async def get(self, path: str, *, prefer: str = IMMUTABLE, **params: str) -> httpx.Response:
        url = path if path.startswith("http") else self.url + path
        return await self.client.get(url, params=params or None, headers={**self.headers, "Prefer": prefer})

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.client.request(
            method, self.url + path, json=body, headers={**self.headers, "Prefer": IMMUTABLE}
        )

    async def token(self, *, tenant: str = "common", **form: str) -> httpx.Response:
        credentials = {"client_id": self.fake.client_id, "client_secret": self.fake.client_secret}
        url = f"{self.url}/{tenant}/oauth2/v2.0/token"
        return await self.client.post(url, data={**credentials, **form})

    async def delta(self, link: str | None = None, *, prefer: str = IMMUTABLE) -> tuple[list[Any], str]:
        """One round: its entries, and the delta link."""
        entries: list[Any] = []
        response = await self.get(link or DELTA, prefer=prefer, **({} if link else WINDOW))
        while "@odata.nextLink" in response.json():
            entries += response.json()["value"]
            response = await self.get(response.json()["@odata.nextLink"], prefer=prefer)
        return entries + response.json()["value"], response.json()["@odata.deltaLink"]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    fake = FakeMicrosoft()
    fake.now = lambda: NOW
    async with serve(fake) as url, operator_client(timeout=5.0) as client:
        yield Api(fake, client, url)


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "params"),
    [
        (VIEW, {}),
        (VIEW, {"startDateTime": WINDOW["startDateTime"]}),
        (VIEW, {"startDateTime": "today", "endDateTime": "tomorrow"}),
        (VIEW, {"startDateTime": "2020-01-01", "endDateTime": "2025-01-01"}),
        (VIEW, {**WINDOW, "$top": "1001"}),
        (VIEW, {**WINDOW, "$top": "0"}),
        (VIEW, {**WINDOW, "$select": "id,title"}),
        (VIEW, {**WINDOW, "$select": "id,lastModifiedDateTime"}),
        (DELTA, {}),
        (DELTA, {**WINDOW, "$select": "id"}),
        (DELTA, {**WINDOW, "$top": "5"}),
        (DELTA, {**WINDOW, "$orderby": "start/dateTime"}),
        (DELTA, {"$deltatoken": "garbled"}),
        (DELTA, {"$skiptoken": "garbled"}),
    ],
)
async def test_what_graph_refuses_is_refused(api: Api, path: str, params: dict[str, str]) -> None:
    response = await api.get(path, **params)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"code", "message", "innerError"}


async def test_a_view_has_ten_events_a_page_and_absolute_links(api: Api) -> None:
    api.fake.seed(12, start=NOW)
    first = (await api.get(VIEW, **WINDOW)).json()
    assert len(first["value"]) == 10
    assert first["@odata.nextLink"].startswith(f"{api.url}{VIEW}?")
    second = (await api.get(first["@odata.nextLink"])).json()
    assert [event["id"] for event in second["value"]] == ["seed0000010", "seed0000011"]
    assert "@odata.nextLink" not in second


async def test_times_and_ids_are_rendered_as_preferred_on_each_page_anew(api: Api) -> None:
    event_id = api.fake.add_event(start=NOW, end=NOW + HOUR, body="<p>Hello</p>")
    utc = (await api.get(VIEW, **WINDOW)).json()["value"][0]
    assert (utc["id"], utc["start"]) == (
        event_id,
        {"dateTime": "2026-11-20T12:00:00.0000000", "timeZone": "UTC"},
    )
    response = await api.get(
        VIEW,
        prefer='outlook.timezone="Pacific Standard Time", outlook.body-content-type="text"',
        **WINDOW,
    )
    local = response.json()["value"][0]
    assert local["id"] == default_id(event_id)
    assert local["start"] == {
        "dateTime": "2026-11-20T04:00:00.0000000",
        "timeZone": "Pacific Standard Time",
    }
    assert local["body"] == {"contentType": "text", "content": "Hello"}
    assert 'outlook.timezone="Pacific Standard Time"' in response.headers["preference-applied"]
    assert "request-id" in response.headers
    assert (await api.get(VIEW, prefer='outlook.timezone="Mars"', **WINDOW)).status_code == 400


async def test_single_events_and_instances_are_found_by_either_id(api: Api) -> None:
    series = api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=3")
    for asked in (series, default_id(series)):
        path = f"/v1.0/me/events/{quote(asked, safe='')}"
        master = (await api.get(path)).json()
        assert (master["id"], master["type"]) == (series, "seriesMaster")
        assert master["recurrence"]["range"]["numberOfOccurrences"] == 3
        instances = (await api.get(f"{path}/instances", **WINDOW)).json()["value"]
        assert [event["type"] for event in instances] == ["occurrence"] * 3
    assert code_of(await api.get("/v1.0/me/events/AAMkUnknown")) == (404, "ErrorItemNotFound")
    assert code_of(await api.get("/v1.0/me/events/nonsense")) == (400, "ErrorInvalidIdMalformed")


async def test_members_of_a_series_share_a_change_key_that_any_change_moves(api: Api) -> None:
    series = api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=3")
    before = api.fake.window_events(NOW, NOW + 9 * DAY)
    api.fake.update_event(occurrence_id(series, NOW + DAY), subject="Other")
    after = api.fake.window_events(NOW, NOW + 9 * DAY)
    assert len({event["changeKey"] for event in after.values()}) == 1
    first = occurrence_id(series, NOW)
    assert before[first]["changeKey"] != after[first]["changeKey"]
    assert [event["type"] for event in after.values()] == ["occurrence", "exception", "occurrence"]


async def test_all_day_events_come_in_two_styles(api: Api) -> None:
    api.fake.add_event(start=date(2026, 11, 24), end=date(2026, 11, 25))
    plain = (await api.get(VIEW, **WINDOW)).json()["value"][0]["start"]["dateTime"]
    api.fake.all_day_style = "shifted"
    shifted = (await api.get(VIEW, **WINDOW)).json()["value"][0]["start"]["dateTime"]
    assert (plain, shifted) == ("2026-11-24T00:00:00.0000000", "2026-11-23T23:00:00.0000000")


# --- delta -----------------------------------------------------------------------------------------------


async def test_delta_strips_occurrences_and_sends_a_series_whole(api: Api) -> None:
    series = api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=3", subject="Daily")
    single = api.fake.add_event(start=NOW, end=NOW + HOUR)
    entries, link = await api.delta()
    assert [entry["id"] for entry in entries] == [
        series,
        *(occurrence_id(series, NOW + number * DAY) for number in range(3)),
        single,
    ]
    assert set(entries[1]) == {"@odata.type", "@odata.etag", "id", "seriesMasterId", "type", "start", "end"}
    assert (entries[0]["subject"], entries[0]["type"]) == ("Daily", "seriesMaster")

    api.fake.delete_event(occurrence_id(series, NOW + DAY))
    entries, link = await api.delta(link)
    assert [entry["id"] for entry in entries] == [
        series,
        occurrence_id(series, NOW),
        occurrence_id(series, NOW + 2 * DAY),
    ]
    api.fake.update_event(occurrence_id(series, NOW), subject="Exception")
    entries, link = await api.delta(link)
    assert [entry.get("subject") for entry in entries] == ["Daily", "Exception", None]
    assert (await api.delta(link))[0] == []


async def test_delta_calls_removed_what_is_deleted_or_out_of_the_window(api: Api) -> None:
    series = api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=3")
    single = api.fake.add_event(start=NOW, end=NOW + HOUR)
    _, link = await api.delta()
    api.fake.delete_event(single)
    api.fake.delete_series(series)
    far = api.fake.add_event(start=NOW + 90 * DAY, end=NOW + 91 * DAY)
    entries, _ = await api.delta(link)
    assert [(entry["id"], entry["@removed"]) for entry in entries] == [
        (id_, {"reason": "deleted"}) for id_ in (single, series, far)
    ]


async def test_pages_of_delta_are_as_large_as_preferred_but_never_split_a_series(api: Api) -> None:
    api.fake.seed(3, start=NOW)
    api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=5")
    response = await api.get(DELTA, prefer=f"{IMMUTABLE}, odata.maxpagesize=2", **WINDOW)
    assert len(response.json()["value"]) == 2
    assert "odata.maxpagesize=2" in response.headers["preference-applied"]
    link = response.json()["@odata.nextLink"]
    rest = (await api.get(link, prefer="odata.maxpagesize=2")).json()
    assert len(rest["value"]) == 1 + 6
    assert rest["value"][0]["id"] == default_id("seed0000002")
    assert (await api.get(f"{link}&$top=5")).status_code == 400


async def test_delta_links_belong_to_their_calendar_and_must_not_be_altered(api: Api) -> None:
    _, link = await api.delta()
    other = api.fake.add_calendar("Other")
    assert (await api.get(f"{link}&$select=id")).status_code == 400
    assert (await api.get(link.replace("%3d", "="))).status_code == 400
    moved = link.replace("/me/", f"/me/calendars/{quote(other, safe='')}/")
    assert (await api.get(moved)).status_code == 400


@pytest.mark.parametrize("spelling", EXPIRED_SPELLINGS)
async def test_an_expired_delta_link_returns_410(api: Api, spelling: str) -> None:
    _, link = await api.delta()
    await api.client.post(f"{api.url}/_fake/expire_delta", params={"spelling": spelling})
    assert code_of(await api.get(link)) == (410, spelling)
    _, link = await api.delta()
    assert (await api.get(link)).status_code == 200


# --- throttling, batch -----------------------------------------------------------------------------------


async def test_a_fifth_request_at_a_time_is_throttled(api: Api) -> None:
    api.fake.latency = 0.05
    responses = await asyncio.gather(*(api.get("/v1.0/me/calendars") for _ in range(5)))
    throttled = [response for response in responses if response.status_code == 429]
    assert [code_of(response) for response in throttled] == [(429, "ApplicationThrottled")]
    assert throttled[0].headers["retry-after"] == "1"
    other = api.fake.add_mailbox("bob@example.com")
    assert other.in_flight == api.fake.mailbox().in_flight == 0


async def test_requests_are_counted_for_each_mailbox(api: Api) -> None:
    api.fake.mailbox_limit = 2
    assert [(await api.get("/v1.0/me")).status_code for _ in range(3)] == [200, 200, 429]
    api.fake.add_mailbox("bob@example.com")
    api.headers = {
        "Authorization": "Bearer "
        + api.fake.issue_access_token(refresh_token=api.fake.add_grant(mailbox="bob@example.com"))
    }
    assert (await api.get("/v1.0/me")).json()["userPrincipalName"] == "bob@example.com"
    api.fake.global_limit = 4
    assert (await api.get("/v1.0/me")).status_code == 429


async def test_a_batch_responds_in_any_order_with_its_own_errors(api: Api) -> None:
    event_id = api.fake.add_event(start=NOW, end=NOW + HOUR, subject="One")
    steps = [
        {"id": "1", "method": "GET", "url": f"/me/events/{event_id}", "headers": {"Prefer": IMMUTABLE}},
        {"id": "2", "method": "GET", "url": "/me/events/AAMkUnknown"},
        {"id": "3", "method": "GET", "url": "/me", "dependsOn": ["2"]},
        {
            "id": "4",
            "method": "GET",
            "url": "/me/calendarView?startDateTime=2026-11-20&endDateTime=2026-11-21",
        },
    ]
    responses = (await api.send("POST", "/v1.0/$batch", {"requests": steps})).json()["responses"]
    by_id = {response["id"]: response for response in responses}
    assert [by_id[id_]["status"] for id_ in "1234"] == [200, 404, 424, 200]
    assert by_id["1"]["body"]["subject"] == "One"
    assert len(by_id["4"]["body"]["value"]) == 1
    api.fake.batch_throttled = 2
    responses = (await api.send("POST", "/v1.0/$batch", {"requests": steps})).json()["responses"]
    assert sorted(response["status"] for response in responses) == [200, 424, 429, 429]
    assert (await api.send("POST", "/v1.0/$batch", {"requests": steps * 6})).status_code == 400


# --- identity --------------------------------------------------------------------------------------------


def asked(**changes: str) -> dict[str, str]:
    return {
        "client_id": "app",
        "redirect_uri": CALLBACK,
        "response_type": "code",
        "scope": f"{CALENDAR_SCOPE} offline_access",
        "state": "s1",
        **changes,
    }


async def authorize(api: Api, *, tenant: str = "common", **changes: str) -> dict[str, str]:
    response = await api.client.get(f"{api.url}/{tenant}/oauth2/v2.0/authorize", params=asked(**changes))
    assert response.status_code == 302
    return {
        name: values[0] for name, values in parse_qs(urlsplit(response.headers["location"]).query).items()
    }


async def test_a_code_is_good_once_with_its_verifier(api: Api) -> None:
    api.fake.add_client("app", "secret", redirect_uris=[CALLBACK])
    verifier = "v" * 43
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    form = {
        "client_id": "app",
        "client_secret": "secret",
        "grant_type": "authorization_code",
        "redirect_uri": CALLBACK,
    }
    for attempt, numbers in ((verifier, [None, 54005]), ("wrong", [501481, 54005])):
        back = await authorize(api, code_challenge=challenge, code_challenge_method="S256")
        assert back["state"] == "s1"
        for number in numbers:
            response = await api.token(**form, code=back["code"], code_verifier=attempt)
            assert response.json().get("error_codes", [None]) == [number]
            if number is None:
                assert response.json()["refresh_token"]
    api.fake.denies_consent = True
    assert (await authorize(api))["error"] == "access_denied"


async def test_a_single_tenant_app_is_not_usable_through_common(api: Api) -> None:
    api.fake.add_client("app", "secret", redirect_uris=[CALLBACK], tenant_id=api.fake.tenant_id)
    response = await api.client.get(f"{api.url}/common/oauth2/v2.0/authorize", params=asked())
    assert (response.status_code, "AADSTS50194" in response.text) == (400, True)
    assert "code" in await authorize(api, tenant=api.fake.tenant_id)
    token = api.fake.add_grant(client_id="app")
    form = {
        "client_id": "app",
        "client_secret": "secret",
        "grant_type": "refresh_token",
        "refresh_token": token,
    }
    assert (await api.token(**form)).json()["error_codes"] == [50194]
    assert (await api.token(tenant=api.fake.tenant_id, **form)).status_code == 200
    assert (await api.token(tenant="elsewhere", **form)).json()["error_codes"] == [90002]


async def test_a_refresh_may_ask_for_no_more_than_was_granted(api: Api) -> None:
    form = {"grant_type": "refresh_token", "refresh_token": api.fake.refresh_token}
    scope = "https://graph.microsoft.com/Calendars.Read offline_access"
    assert (await api.token(**form, scope=scope)).status_code == 200
    response = await api.token(**form, scope="Mail.Read")
    assert (response.json()["error"], response.json()["suberror"]) == ("invalid_grant", "consent_required")


async def test_a_spa_registration_ends_after_a_day_whatever_is_refreshed(api: Api) -> None:
    api.fake.refresh_token_life, api.fake.refresh_tokens_roll = DAY, False
    token = api.fake.add_grant()
    api.fake.now = lambda: NOW + 23 * HOUR
    token = (await api.token(grant_type="refresh_token", refresh_token=token)).json()["refresh_token"]
    api.fake.now = lambda: NOW + 25 * HOUR
    response = await api.token(grant_type="refresh_token", refresh_token=token)
    assert response.json()["error_codes"] == [700084]


@pytest.mark.parametrize(
    ("headers", "message"),
    [({}, "Access token is empty."), ({"Authorization": "Bearer nonsense"}, "80049217")],
)
async def test_a_missing_or_unknown_access_token_is_refused(
    api: Api, headers: dict[str, str], message: str
) -> None:
    api.headers = headers
    response = await api.get("/v1.0/me")
    assert code_of(response) == (401, "InvalidAuthenticationToken")
    assert message in response.json()["error"]["message"]


# --- subscriptions ---------------------------------------------------------------------------------------


class Receiver:
    """A notification endpoint. The responses in `responses` go out first; then it does as it should."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.handshakes: list[Request] = []
        self.received: list[dict[str, Any]] = []
        self.app = Starlette(routes=[Route("/{path:path}", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        if self.responses:
            return self.responses.pop(0)
        if "validationToken" in request.query_params:
            self.handshakes.append(request)
            return PlainTextResponse(request.query_params["validationToken"])
        self.received.append(await request.json())
        return Response(status_code=202)

    @property
    def items(self) -> list[dict[str, Any]]:
        return [item for document in self.received for item in document["value"]]


@pytest.fixture
async def receiver(api: Api) -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    api.fake.allow_http_push = True
    api.fake.push_retry_seconds = 0.001
    async with serve(receiver.app) as url:
        yield receiver, url


def subscription(url: str, **changes: Any) -> dict[str, Any]:
    return {
        "changeType": "created,updated,deleted",
        "notificationUrl": f"{url}/hook?c=42",
        "lifecycleNotificationUrl": f"{url}/life",
        "resource": "me/events",
        "expirationDateTime": "2026-11-26T12:00:00.0000000Z",
        "clientState": "secret",
        **changes,
    }


async def subscribe(api: Api, url: str, **changes: Any) -> dict[str, Any]:
    response = await api.send("POST", "/v1.0/subscriptions", subscription(url, **changes))
    assert response.status_code == 201
    created: dict[str, Any] = response.json()
    return created


async def test_a_subscription_starts_with_a_handshake_with_both_addresses(
    api: Api, receiver: tuple[Receiver, str]
) -> None:
    hook, url = receiver
    created = await subscribe(api, url)
    assert [request.url.path for request in hook.handshakes] == ["/hook", "/life"]
    assert hook.handshakes[0].query_params["c"] == "42"
    assert {" ", "+"} <= set(hook.handshakes[0].query_params["validationToken"])
    assert created["id"] in api.fake.subscriptions
    assert created["clientState"] == "secret"
    one = f"/v1.0/subscriptions/{created['id']}"
    assert (await api.get(one)).json() == created
    assert (await api.get("/v1.0/subscriptions")).json()["value"] == [created]
    assert (await api.send("DELETE", one)).status_code == 204
    assert code_of(await api.send("DELETE", one)) == (404, "ResourceNotFound")


@pytest.mark.parametrize(
    "response",
    [
        Response(status_code=500),
        Response("{}", media_type="application/json"),
        PlainTextResponse("another token"),
        PlainTextResponse("", status_code=202),
    ],
)
async def test_a_failed_handshake_creates_nothing(
    api: Api, receiver: tuple[Receiver, str], response: Response
) -> None:
    hook, url = receiver
    hook.responses.append(response)
    refused = await api.send("POST", "/v1.0/subscriptions", subscription(url))
    assert code_of(refused) == (400, "ValidationError")
    assert api.fake.subscriptions == {}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"expirationDateTime": "2026-11-27T12:01:00Z"}, 400),
        ({"expirationDateTime": "2026-11-20T11:00:00Z"}, 400),
        ({"expirationDateTime": None}, 400),
        ({"changeType": "moved"}, 400),
        ({"resource": "me/messages"}, 400),
        ({"resource": "me/calendars/AQMkUnknown/events"}, 404),
        ({"clientState": "x" * 129}, 400),
        ({"notificationUrl": None}, 400),
        ({"notificationUrl": "ftp://app.example/"}, 400),
    ],
)
async def test_a_subscription_that_graph_refuses_is_refused(
    api: Api, receiver: tuple[Receiver, str], changes: dict[str, Any], status: int
) -> None:
    _, url = receiver
    response = await api.send("POST", "/v1.0/subscriptions", subscription(url, **changes))
    assert response.status_code == status


async def test_a_second_subscription_to_the_same_is_a_conflict_and_http_is_refused(
    api: Api, receiver: tuple[Receiver, str]
) -> None:
    _, url = receiver
    await subscribe(api, url)
    assert (await api.send("POST", "/v1.0/subscriptions", subscription(url))).status_code == 409
    await subscribe(api, url, changeType="deleted")
    api.fake.allow_http_push = False
    response = await api.send("POST", "/v1.0/subscriptions", subscription(url, changeType="created"))
    assert response.status_code == 400


async def test_subscriptions_are_notified_of_changes_in_their_calendar(
    api: Api, receiver: tuple[Receiver, str]
) -> None:
    hook, url = receiver
    team = api.fake.add_calendar("Team")
    mine = await subscribe(api, url)
    theirs = await subscribe(
        api, url, resource=f"me/calendars/{quote(team, safe='')}/events", clientState="other"
    )
    series = api.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=3")
    there = api.fake.add_event(start=NOW, end=NOW + HOUR, calendar_id=team)
    await api.fake.deliver_notifications()
    assert len(hook.received) == 1, "changes of one moment for one address go out together"
    api.fake.update_event(occurrence_id(series, NOW), subject="Other")
    await api.fake.deliver_notifications()
    api.fake.delete_event(there, calendar_id=team)
    await api.fake.deliver_notifications()
    notified = [
        (item["subscriptionId"], item["changeType"], item["resourceData"]["id"], item["clientState"])
        for item in hook.items
    ]
    assert notified == [
        (mine["id"], "created", series, "secret"),
        (theirs["id"], "created", there, "other"),
        (mine["id"], "updated", series, "secret"),
        (theirs["id"], "deleted", there, "other"),
    ]


async def test_notifications_are_retried_and_can_be_lost_doubled_or_spoiled(
    api: Api, receiver: tuple[Receiver, str]
) -> None:
    hook, url = receiver
    await subscribe(api, url)

    async def change() -> list[str | None]:
        hook.received.clear()
        api.fake.add_event(start=NOW, end=NOW + HOUR)
        await api.fake.deliver_notifications()
        return [item["clientState"] for item in hook.items]

    hook.responses += [Response(status_code=503), Response(status_code=404)]
    assert await change() == ["secret"]
    api.fake.lost_notifications = 1
    assert await change() == []
    api.fake.wrong_client_states = 1
    assert await change() == ["not the client state"]
    api.fake.mixes_in_unknown = True
    assert await change() == ["secret", "secret"]
    assert len({item["subscriptionId"] for item in hook.items}) == 2
    api.fake.mixes_in_unknown, api.fake.duplicate_notifications = False, True
    assert await change() == ["secret", "secret"]


async def test_lifecycle_events_are_sent_and_have_their_consequences(
    api: Api, receiver: tuple[Receiver, str]
) -> None:
    hook, url = receiver
    created = await subscribe(api, url)
    one = f"/v1.0/subscriptions/{created['id']}"

    async def change() -> int:
        hook.received.clear()
        api.fake.add_event(start=NOW, end=NOW + HOUR)
        await api.fake.deliver_notifications()
        return len(hook.items)

    for renew in (
        api.send("PATCH", one, {"expirationDateTime": "2026-11-27T11:00:00Z"}),
        api.send("POST", f"{one}/reauthorize"),
    ):
        api.fake.send_lifecycle("reauthorizationRequired")
        await api.fake.deliver_notifications()
        assert hook.items[-1]["lifecycleEvent"] == "reauthorizationRequired"
        assert await change() == 0
        assert (await renew).is_success
        assert await change() == 1
    api.fake.send_lifecycle("subscriptionRemoved", created["id"])
    assert await change() == 1  # the lifecycle event itself
    assert hook.items[0]["lifecycleEvent"] == "subscriptionRemoved"
    assert (await api.get(one)).status_code == 404


async def test_a_subscription_ends_when_it_is_not_renewed(api: Api, receiver: tuple[Receiver, str]) -> None:
    hook, url = receiver
    created = await subscribe(api, url, expirationDateTime="2026-11-20T12:01:00Z")
    assert created["expirationDateTime"] == "2026-11-20T12:45:00.0000000Z"
    api.fake.now = lambda: NOW + HOUR
    api.fake.add_event(start=NOW, end=NOW + HOUR)
    await api.fake.deliver_notifications()
    assert (hook.received, api.fake.subscriptions) == ([], {})
