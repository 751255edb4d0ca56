"""Locks: what waits for what while bots are handed over, deleted and judged."""

import asyncio

import pytest
from sqlalchemy import func, select, text

from app.bots import service as bots
from app.bots.repository import states
from app.core.db import transaction
from app.join_rules import runs, service
from app.join_rules.judging import judge_links
from app.join_rules.repository import rules
from app.join_rules.schemas import JoinRulesInput
from app.models import Bot, JoinRuleRun
from tests.integration.join_rules.rules_api import add_calendar, add_event, bots_of, names_of, rule, set_rules


async def _waits(sessions) -> bool:
    """Whether a transaction waits for a lock."""
    async with sessions() as session:
        statement = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        return bool(await session.scalar(text(statement)))


async def _until_one_waits(sessions) -> None:
    async with asyncio.timeout(10):
        while not await _waits(sessions):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("step", ["settled", "deleted"])
async def test_a_calendar_is_deleted_while_one_of_its_bots_is_handed_over_or_deleted(
    api, sessions, project, step
) -> None:
    calendar_id = await add_calendar(api)
    event_id = await add_event(api, calendar_id)
    await set_rules(api, rule("a"))
    (bot,) = await bots_of(api, event_id)
    async with transaction(sessions) as session:
        if step == "deleted":
            await bots.delete_bot(session, project.id, bot["id"])  # this far, the mark is written as well
            deleting = asyncio.create_task(api.delete(f"/api/v1/calendars/{calendar_id}"))
            await _until_one_waits(sessions)
        else:
            locked = await states.lock_bot(session, project.id, bot["id"])
            assert locked is not None
            deleting = asyncio.create_task(api.delete(f"/api/v1/calendars/{calendar_id}"))
            await _until_one_waits(sessions)
            await service.judge_later(session, locked.state)
    assert (await deleting).status_code < 300
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Bot)) == 0
        assert await session.scalar(select(func.count()).select_from(JoinRuleRun)) == 0


async def test_rules_of_meetings_are_applied_when_all_who_read_the_old_ones_have_ended(
    api, sessions, settings, project
) -> None:
    """A run by links does not lock the calendars of the events that it judges."""
    first, second = await add_calendar(api), await add_calendar(api)
    one, two = await add_event(api, first, name="Lunch"), await add_event(api, second, name="Lunch")
    await set_rules(api, rule("old", name_contains=["review"]))
    async with transaction(sessions) as writer:
        await rules.lock_calendar(writer, second)
        await writer.execute(text("UPDATE calendar_events SET name = 'Review' WHERE id = :id"), {"id": two})
        await service.follow_rules(writer, project.id, second, [two], platforms={"zoom"})
        changing = asyncio.create_task(set_rules(api, rule("new", name_contains=["lunch"]), scope="meeting"))
        await asyncio.sleep(0.5)
        assert not changing.done()
    await changing
    assert (await names_of(api, one), await names_of(api, two)) == (["Bot of new"], [])


async def test_rules_do_not_change_while_a_run_judges_by_links(api, sessions, project) -> None:
    await set_rules(api, rule("a"), scope="meeting")
    async with transaction(sessions) as session:
        assert await rules.try_lock_rules(session, project.id)
        changing = asyncio.create_task(set_rules(api, rule("b"), scope="event"))
        await _until_one_waits(sessions)
        assert [found.rules[0]["name"] for found in await rules.load_all_rules(session, project.id)] == ["a"]
    await changing


async def test_a_calendar_that_leaves_waits_for_a_run_by_links(api, sessions, project) -> None:
    calendar_id = await add_calendar(api)
    event_id = await add_event(api, calendar_id)
    await set_rules(api, rule("a", name_contains=["nothing"]), scope="meeting")
    async with transaction(sessions) as session:
        body = JoinRulesInput.model_validate({"rules": [rule("b")], "bot_scope": "meeting"})
        await service.put_rules(session, project.id, body)
    async with transaction(sessions) as session:
        await rules.lock_meetings(session, project.id)
        deleting = asyncio.create_task(api.delete(f"/api/v1/calendars/{calendar_id}"))
        await _until_one_waits(sessions)
        await judge_links(session, project.id, runs._FIRST_LINK, 100, platforms={"zoom"})
    assert (await deleting).status_code < 300
    async with sessions() as session:
        assert await session.scalar(select(Bot.id).where(Bot.calendar_event_id == event_id)) is None
