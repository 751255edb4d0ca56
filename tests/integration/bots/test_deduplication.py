"""Deduplication keys of bots, and idempotent requests."""

import asyncio

from sqlalchemy import select, update

from app.core.clock import utcnow
from app.core.db import transaction
from app.models import Bot, CalendarEvent
from tests.integration.bots.bots_api import URL, by_hand, create, in_hours, set_state


async def test_of_simultaneous_requests_with_one_key_one_wins(api, sessions) -> None:
    responses = await asyncio.gather(
        *(api.post(URL, json=by_hand(deduplication_key="k", bot_name=f"{n}")) for n in range(8))
    )
    assert sorted(response.status_code for response in responses) == [201] + [400] * 7
    refused = next(response for response in responses if response.status_code == 400).json()
    assert list(refused) == ["deduplication_key"]
    async with sessions() as session:
        assert len((await session.scalars(select(Bot.id))).all()) == 1


async def test_keys_are_the_projects_own(api, other_api) -> None:
    await create(api, deduplication_key="k")
    await create(other_api, deduplication_key="k")


async def test_a_key_is_free_again_when_its_bot_is_finished_or_deleted(api, sessions) -> None:
    first = await create(api, deduplication_key="k")
    await api.delete(f"{URL}/{first['id']}")
    second = await create(api, deduplication_key="k")
    await set_state(sessions, second["id"], "fatal_error", holds_key=False)
    third = await create(api, deduplication_key="k")

    async def try_again():
        return (await api.post(URL, json=by_hand(deduplication_key="k"))).status_code

    await set_state(sessions, third["id"], "launched", join_at=in_hours(-1))
    assert await try_again() == 400, "its meeting goes on"
    await set_state(sessions, third["id"], "launching", join_at=in_hours(-9), next_attempt_at=utcnow())
    assert await try_again() == 400, "it is being handed over"
    await set_state(sessions, third["id"], "launched", join_at=in_hours(-9), next_attempt_at=None)
    assert await try_again() == 201, "its meeting is over"


async def test_a_key_is_held_until_the_events_end(api, add_event, sessions) -> None:
    event_id = await add_event(start_time=in_hours(-6), end_time=in_hours(0.1))
    body = {"bot_name": "x", "calendar_event_id": event_id, "deduplication_key": event_id}
    bot = (await api.post(URL, json=body)).json()
    await set_state(sessions, bot["id"], "launched")
    other = by_hand(deduplication_key=event_id)
    assert (await api.post(URL, json=other)).status_code == 400
    async with transaction(sessions) as session:
        await session.execute(update(CalendarEvent).values(end_time=in_hours(-0.1)))
    assert (await api.post(URL, json=other)).status_code == 201


async def test_the_same_idempotency_key_makes_one_bot(api) -> None:
    body, headers = by_hand(), {"Idempotency-Key": "once"}
    responses = [await api.post(URL, json=body, headers=headers) for _ in range(2)]
    assert [response.status_code for response in responses] == [201, 201]
    assert responses[0].json() == responses[1].json()
    assert (await api.post(URL, json=by_hand(bot_name="other"), headers=headers)).status_code == 409


async def test_a_key_of_a_finished_bot_can_be_taken_over_by_a_change(api, sessions) -> None:
    old, new = await create(api, deduplication_key="k"), await create(api)
    await set_state(sessions, old["id"], "launched", join_at=in_hours(-9))
    response = await api.patch(f"{URL}/{new['id']}", json={"deduplication_key": "k"})
    assert response.json()["deduplication_key"] == "k"
    cleared = await api.patch(f"{URL}/{new['id']}", json={"deduplication_key": None})
    assert cleared.json()["deduplication_key"] is None
