"""Filters of webhooks: the API, and which messages they let pass."""

from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import delete

from app.core.db import transaction
from app.models import WebhookDelivery
from app.webhooks.outbox import Message, announce_each
from app.webhooks.payloads import CalendarFacts, Trigger
from tests import factories
from tests.integration.webhooks.webhooks_api import announce_change, create, stored

PATH = "/api/v1/webhooks"
JSON = {"Content-Type": "application/json"}
DEFAULTS = {
    "calendar_ids": None,
    "metadata": None,
    "changed_fields": None,
    "ordering": "any",
    "starting_soon_minutes": 10,
}


@pytest.fixture
async def calendar_id(sessions, settings, project) -> str:
    return await factories.add_calendar(sessions, settings, project.id, secrets={})


def shown(webhook: dict[str, Any]) -> dict[str, Any]:
    return {name: webhook[name] for name in DEFAULTS}


async def test_filters_are_set_shown_and_taken_back(api: httpx.AsyncClient, calendar_id: str) -> None:
    webhook = await create(api)
    assert shown(webhook) == DEFAULTS
    values = {
        "calendar_ids": [calendar_id],
        "metadata": {"team": "a"},
        "changed_fields": ["start_time", "end_time"],
        "ordering": "fifo",
        "starting_soon_minutes": 1440,
    }
    assert shown(await create(api, **values)) == values
    path = f"{PATH}/{webhook['id']}"
    assert shown((await api.patch(path, json=values)).json()) == values
    assert shown((await api.patch(path, json={"is_active": True})).json()) == values
    assert shown((await api.get(path)).json()) == values
    assert values in [shown(one) for one in (await api.get(PATH)).json()["results"]]
    assert shown((await api.patch(path, json=dict.fromkeys(values))).json()) == DEFAULTS
    assert shown(await create(api, **dict.fromkeys(values))) == DEFAULTS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("calendar_ids", ["cal_0000000000000000"]),
        ("calendar_ids", []),
        ("calendar_ids", [f"cal_{number}" for number in range(501)]),
        ("calendar_ids", ["\x00"]),
        ("calendar_ids", ["\ud800"]),
        ("calendar_ids", "cal_0000000000000000"),
        ("calendar_ids", [1]),
        ("metadata", {}),
        ("metadata", {"team": 1}),
        ("metadata", {"team": "a" * 1001}),
        ("changed_fields", ["colour"]),
        ("changed_fields", []),
        ("changed_fields", ["start_time"] * 51),
        ("ordering", "lifo"),
        ("starting_soon_minutes", 0),
        ("starting_soon_minutes", 1441),
        ("starting_soon_minutes", 10**30),
        ("starting_soon_minutes", "10"),
        ("starting_soon_minutes", 1.5),
        ("starting_soon_minutes", True),
        ("start_soon", 1),
    ],
)
async def test_bad_filters_are_named(api: httpx.AsyncClient, field: str, value: Any) -> None:
    webhook = await create(api)
    content = orjson.dumps({"url": webhook["url"], "triggers": ["event.created"]})
    for response in (
        await api.post(PATH, content=_with(content, field, value), headers=JSON),
        await api.patch(f"{PATH}/{webhook['id']}", content=_with(b"{}", field, value), headers=JSON),
    ):
        assert response.status_code == 400, response.text
        assert list(response.json()) == [field]


def _with(content: bytes, field: str, value: Any) -> bytes:
    import json  # which writes half a surrogate pair, as a client may

    return json.dumps({**orjson.loads(content), field: value}).encode()


async def test_a_calendar_of_another_project_is_unknown(api, sessions, settings, other_project) -> None:
    foreign = await factories.add_calendar(sessions, settings, other_project.id, secrets={})
    body = {"url": "https://hooks.example/", "triggers": ["event.created"], "calendar_ids": [foreign]}
    response = await api.post(PATH, json=body)
    assert response.status_code == 400
    assert foreign in response.json()["calendar_ids"][0]


async def test_the_id_of_a_deleted_calendar_stays_and_does_no_harm(api, calendar_id: str) -> None:
    webhook = await create(api, calendar_ids=[calendar_id])
    assert (await api.delete(f"/api/v1/calendars/{calendar_id}")).status_code == 200
    response = await api.patch(f"{PATH}/{webhook['id']}", json={"calendar_ids": [calendar_id]})
    assert response.json()["calendar_ids"] == [calendar_id]


def facts(calendar_id: str, **metadata: str) -> CalendarFacts:
    return CalendarFacts(calendar_id, None, metadata or None)


async def test_filters_hold_for_every_message(api, sessions, project, calendar_id: str) -> None:
    trigger: Trigger = "bot.state_change"
    by_id = (await create(api, triggers=[trigger], calendar_ids=[calendar_id]))["id"]
    by_metadata = (await create(api, triggers=[trigger], metadata={"team": "a"}))["id"]
    both = (await create(api, triggers=[trigger], calendar_ids=[calendar_id], metadata={"team": "a"}))["id"]
    every = (await create(api, triggers=[trigger]))["id"]
    expected: list[tuple[CalendarFacts | None, set[str]]] = [
        (facts(calendar_id), {by_id, every}),
        (facts(calendar_id, team="a", user="1"), {by_id, by_metadata, both, every}),
        (facts("cal_2", team="a"), {by_metadata, every}),
        (facts("cal_3", team="b"), {every}),
        (None, {every}),
    ]
    for calendar, endpoints in expected:
        before = {row.id for row in await stored(sessions)}
        assert await announce_change(sessions, project, trigger, calendar=calendar) == len(endpoints)
        new = [row for row in await stored(sessions) if row.id not in before]
        assert {row.subscription_id for row in new} == endpoints
    async with transaction(sessions) as session:
        await session.execute(delete(WebhookDelivery))
        expected = expected[1:]  # one transaction knows one state of a calendar
        messages = [Message(calendar, {}) for calendar, _ in expected]
        await announce_each(session, project_id=project.id, trigger=trigger, messages=messages)
    got = sorted((row.calendar_id or "", row.subscription_id) for row in await stored(sessions))
    assert got == sorted(
        (calendar.id if calendar else "", endpoint)
        for calendar, endpoints in expected
        for endpoint in endpoints
    )
