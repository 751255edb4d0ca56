"""Single cases that random stories seldom meet."""

import asyncio
from typing import Any

from tests.flows.join_rules.model import Rule, Rules
from tests.flows.join_rules.played import Played

JOINED = Rule("joined", {}, bot={"bot_name": "Bot joined"})
EACH = Rules((JOINED,))
ONE = Rules((JOINED,), "meeting")
SOON, LATER = 6, 60


async def settled(played: Played) -> list[Any]:
    await played.hand_over()
    await played.apply_all()
    await played.check()
    return await played.scheduled()


async def test_always_for_another_event_of_a_meeting_lifts_the_deletion_of_its_bot(new_project) -> None:
    async with new_project() as played:
        await played.put_rules(ONE)
        await played.add(0, LATER, 0, {})
        await played.add(1, LATER, 0, {})
        (bot,) = await settled(played)
        await played.delete_bot(0)
        assert await settled(played) == []
        carrier = {event_id: name for name, event_id in played.ids.items()}[bot.calendar_event_id]
        other = next(number for number, name in enumerate(("event0", "event1")) if name != carrier)
        await played.set_policy(other, "always")
        assert len(await settled(played)) == 1


async def test_always_lifts_no_deletion_of_another_meeting_with_the_link(new_project) -> None:
    """As in a personal meeting room: one meeting after the other, on one day."""
    async with new_project() as played:
        await played.put_rules(ONE)
        await played.add(0, LATER, 0, {})
        await played.add(0, LATER + 6, 0, {})
        first, _ = sorted(await settled(played), key=lambda bot: bot.join_at)
        bots = await played.scheduled()
        await played.delete_bot(bots.index(next(bot for bot in bots if bot.id == first.id)))
        assert len(await settled(played)) == 1
        await played.set_policy(1, "always")
        assert len(await settled(played)) == 1, "the other one stays deleted"


async def test_an_event_that_moves_there_and_back_after_its_hand_over_is_joined_once(new_project) -> None:
    for rules in (EACH, ONE):
        async with new_project() as played:
            await played.put_rules(rules)
            await played.add(0, SOON, 0, {})
            await played.claim()
            await played.hand_over()
            await played.move(0, LATER)
            assert len(await settled(played)) == 1, "a successor"
            await played.move(0, SOON)
            assert await settled(played) == [], "the bot that left is there"


async def test_an_event_that_moves_a_little_after_its_hand_over_has_a_successor(new_project) -> None:
    for rules in (EACH, ONE):
        for moved_to in (SOON, SOON + 2):
            async with new_project() as played:
                await played.put_rules(rules)
                await played.add(0, SOON + 1, 0, {})
                await played.claim()
                await played.hand_over()
                await played.move(0, moved_to)
                assert len(await settled(played)) == 1


async def test_a_successor_is_made_for_a_meeting_that_moves_while_its_bot_is_handed_over(new_project) -> None:
    for rules in (EACH, ONE):
        async with new_project() as played:
            await played.put_rules(rules)
            await played.add(0, SOON, 0, {})
            await played.claim()
            await played.move(0, LATER)
            await played.hand_over()
            (bot,) = await settled(played)
            assert bot.join_at == played.model.events["event0"].start


async def test_two_calendars_of_one_meeting_that_move_one_after_the_other_keep_their_bot(new_project) -> None:
    async with new_project() as played:
        await played.put_rules(ONE)
        await played.add(0, LATER, 0, {})
        await played.add(1, LATER, 0, {})
        assert len(await settled(played)) == 1
        await played.move(0, 200)
        assert len(await settled(played)) == 2, "two meetings for now"
        await played.move(1, 200)
        assert len(await settled(played)) == 1


async def test_the_preview_knows_of_deleted_bots_of_events_that_were_cancelled(new_project) -> None:
    async with new_project() as played:
        await played.put_rules(ONE)
        await played.add(0, LATER, 0, {})
        await played.add(1, LATER, 0, {})
        (bot,) = await settled(played)
        await played.delete_bot(0)
        names = {event_id: name for name, event_id in played.ids.items()}
        await played.cancel(int(names[bot.calendar_event_id].removeprefix("event")))
        assert await settled(played) == []
        shown = await played.preview(ONE)
        await played.put_rules(ONE)
        made = [one.calendar_event_id for one in await settled(played)]
        assert [one["calendar_event_id"] for one in shown["make"]] == made


async def test_bots_of_clients_are_left_alone(new_project) -> None:
    """Rules, policies and meetings change nothing about a bot that a client scheduled."""
    async with new_project() as played:
        await played.add(0, LATER, 0, {})
        body = {"calendar_event_id": played.ids["event0"], "bot_name": "Mine"}
        mine = (await played.api.post("/api/v1/bots", json=body)).json()
        for rules in (EACH, ONE, Rules()):
            await played.put_rules(rules)
            await played.apply_all()
            shown = await played.preview(rules)
            assert shown["make"] == []
            assert mine["id"] not in {one["bot_id"] for one in shown["remove"]}
            assert (await played.api.get(f"/api/v1/bots/{mine['id']}")).json() == mine
        policy = f"/api/v1/calendar_events/{played.ids['event0']}/bot_policy"
        assert (await played.api.put(policy, json={"policy": "never"})).status_code == 200
        assert (await played.api.get(f"/api/v1/bots/{mine['id']}")).json() == mine


async def test_a_calendar_that_is_connected_again_gets_its_bots_again(new_project) -> None:
    for rules in (EACH, ONE):
        async with new_project() as played:
            await played.put_rules(rules)
            await played.add(0, LATER, 0, {})
            await played.add(0, LATER + 4, 1, {})
            assert len(await settled(played)) == 2
            await played.disconnect(0)
            assert await settled(played) == []
            await played.reconnect(0)
            assert len(await settled(played)) == 2


async def test_deleting_bots_while_their_calendar_is_deleted_is_never_a_fault(new_project) -> None:
    async with new_project() as played:
        await played.put_rules(ONE)
        for number in range(6):
            await played.add(number % 3, LATER + 4 * number, 0, {})
        bots = await settled(played)
        deletions = [played.api.delete(f"/api/v1/bots/{bot.id}") for bot in bots]
        calendars = [
            played.api.delete(f"/api/v1/calendars/{played.ids[f'cal{number}']}") for number in range(3)
        ]
        responses = await asyncio.gather(*deletions, *calendars)
        assert {response.status_code for response in responses} <= {200, 404, 503}
