"""Claiming due calendars: shares of projects and mailboxes, forced syncs, and what a claim costs."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.db import Sessions, transaction
from app.schedule import request_sync
from app.sync import repository
from app.sync.engine import LEASE_FOR
from app.sync.repository import Claim, claim_due
from app.sync.turns import MAILBOX_SYNCS, Due, Kind, Turns, pick_oldest
from tests import factories

ALL = 1_000


async def seed(
    sessions: Sessions,
    project_id: str,
    count: int,
    *,
    platform: str = "google",
    due_in: str = "-1 hour",
    owner_email: str | None = None,
    name: str = "",
) -> None:
    """Calendars that are due a second apart, the first after `due_in`; each with credentials of its own."""
    async with transaction(sessions) as session:
        values = {"project_id": project_id, "count": count, "platform": platform}
        await session.execute(
            text(
                """
                INSERT INTO credentials (id, project_id, platform, client_id, sealed)
                SELECT 'cred_' || :name || n, :project_id, :platform, 'client', ''
                FROM generate_series(1, :count) n
                """
            ),
            values | {"name": name},
        )
        await session.execute(
            text(
                """
                INSERT INTO calendars (id, project_id, platform, credentials_id, owner_email, next_sync_at)
                SELECT 'cal_' || :name || n, :project_id, :platform, 'cred_' || :name || n, :owner_email,
                       now() + CAST(:due_in AS text)::interval + n * interval '1 second'
                FROM generate_series(1, :count) n
                """
            ),
            values | {"name": name, "owner_email": owner_email, "due_in": due_in},
        )


async def claim(sessions: Sessions, limit: int = ALL, **options: Any) -> list[Claim]:
    async with transaction(sessions) as session:
        return await claim_due(session, limit=limit, lease_for=LEASE_FOR, **options)


class Worker:
    """Claims as a worker's loop does."""

    def __init__(self, sessions: Sessions, kind: Kind = "account", slots: int = 16) -> None:
        self._sessions = sessions
        self._kind = kind
        self.turns = Turns(slots)
        self.free = slots
        self.claims: list[Claim] = []

    async def claim(self) -> list[str]:
        """The projects of what it has taken, in no order."""
        claims = await claim(self._sessions, self.free, kinds=[self._kind], pick=self.turns.pick)
        for one in claims:
            self.turns.begin(one.calendar_id, one.project_id)
        self.free -= len(claims)
        self.claims += claims
        return [one.project_id for one in claims]


async def test_a_project_with_much_to_do_leaves_slots_to_others(sessions, project, other_project) -> None:
    await seed(sessions, project.id, 40, name="busy")
    worker = Worker(sessions)
    assert await worker.claim() == [project.id] * 12
    assert await worker.claim() == []
    await seed(sessions, other_project.id, 40, name="late", due_in="-41 seconds")
    taken = await worker.claim()
    assert set(taken) == {other_project.id}
    assert 1 <= len(taken) <= 3
    assert worker.free >= 1


async def test_what_thousands_of_due_calendars_hide_is_found(sessions, project, other_project) -> None:
    await seed(sessions, project.id, 2_000, name="busy")
    await seed(sessions, other_project.id, 1, name="late", due_in="-2 seconds")
    assert other_project.id in await Worker(sessions).claim()


async def test_due_feeds_do_not_hide_accounts_nor_accounts_feeds(sessions, project, other_project) -> None:
    await seed(sessions, project.id, 500, platform="ics", name="feed")
    await seed(sessions, project.id, 500, name="account")
    await seed(sessions, other_project.id, 1, name="late", due_in="-2 seconds")
    await seed(sessions, other_project.id, 1, platform="ics", name="latefeed", due_in="-2 seconds")
    for kind, calendar_id in (("account", "cal_late1"), ("feed", "cal_latefeed1")):
        worker = Worker(sessions, kind)  # type: ignore[arg-type]
        await worker.claim()
        assert calendar_id in [one.calendar_id for one in worker.claims]
        assert {one.platform == "ics" for one in worker.claims} == {kind == "feed"}


async def test_within_a_project_the_longest_due_is_next(sessions, project) -> None:
    await seed(sessions, project.id, 400, name="x")
    worker = Worker(sessions, slots=3)
    await worker.claim()
    assert sorted(one.calendar_id for one in worker.claims) == ["cal_x1", "cal_x2"]


async def test_of_one_mailbox_three_are_synced_at_once_over_all_workers(sessions, project) -> None:
    await seed(sessions, project.id, 20, platform="microsoft", owner_email="Ada@example.org")
    workers = [Worker(sessions) for _ in range(8)]
    await asyncio.gather(*(worker.claim() for worker in workers))
    claims = [one for worker in workers for one in worker.claims]
    assert len(claims) == MAILBOX_SYNCS
    async with transaction(sessions) as session:
        await repository.give_back(session, claims[0])
    assert len(await claim(sessions)) == 1


async def test_two_claims_at_once_do_not_both_take_the_last_place_of_a_mailbox(sessions, project) -> None:
    await seed(sessions, project.id, 20, platform="microsoft", owner_email="ada@example.org")

    def pick_newest(due: list[Due], mailboxes: Counter[str], limit: int) -> list[Due]:
        return pick_oldest(sorted(due, key=lambda one: one.due_at)[-2:], mailboxes, limit)

    async with transaction(sessions) as session:
        assert len(await claim_due(session, limit=2, lease_for=LEASE_FOR, pick=pick_newest)) == 2
        second = asyncio.create_task(claim(sessions))
        await asyncio.wait([second], timeout=0.5)
    assert len(await second) == 1


async def test_mailboxes_of_others_are_not_held_up_by_one_that_has_its_share(sessions, project) -> None:
    await seed(sessions, project.id, 30, platform="microsoft", owner_email="ada@example.org", name="ada")
    await seed(
        sessions,
        project.id,
        1,
        platform="microsoft",
        owner_email="bob@example.org",
        name="bob",
        due_in="-2 seconds",
    )
    worker = Worker(sessions)
    await worker.claim()
    assert len(worker.claims) == MAILBOX_SYNCS + 1
    assert "cal_bob1" in [one.calendar_id for one in worker.claims]


# --- forced syncs ------------------------------------------------------------------------------------------


async def force(sessions: Sessions, calendar_id: str) -> None:
    async with transaction(sessions) as session:
        await request_sync(session, calendar_id)


async def due_after_start(sessions: Sessions, calendar_id: str) -> timedelta:
    row = await factories.load_calendar(sessions, calendar_id)
    assert row.sync_started_at is not None
    return row.next_sync_at - row.sync_started_at


async def fail(sessions: Sessions, claimed: Claim, *, code: str = "timeout") -> None:
    async with transaction(sessions) as session:
        await session.execute(
            text(
                """
                UPDATE calendars
                SET lease_token = NULL, lease_until = NULL, sync_failure_count = sync_failure_count + 1,
                    sync_failure_code = :code, next_sync_at = now() + interval '30 minutes'
                WHERE id = :id
                """
            ),
            {"id": claimed.calendar_id, "code": code},
        )


async def test_a_forced_sync_says_so_once(sessions, project) -> None:
    await seed(sessions, project.id, 1, due_in="1 hour")
    await force(sessions, "cal_1")
    (claimed,) = await claim(sessions)
    assert claimed.forced
    async with transaction(sessions) as session:
        await repository.give_back(session, claimed)
    (again,) = await claim(sessions)
    assert again.forced, "it is the same sync, cut by a shutdown"
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE calendars SET lease_until = now(), next_sync_at = now()"))
    (third,) = await claim(sessions)
    assert not third.forced


async def test_a_sync_that_is_due_anyway_is_not_a_forced_one(sessions, project) -> None:
    await seed(sessions, project.id, 1)
    await force(sessions, "cal_1")
    (claimed,) = await claim(sessions)
    assert not claimed.forced


async def test_asks_within_five_seconds_are_one(sessions, project) -> None:
    await seed(sessions, project.id, 1)
    (claimed,) = await claim(sessions)
    async with transaction(sessions) as session:
        await session.execute(
            text(
                "UPDATE calendars SET lease_token = NULL, lease_until = NULL, next_sync_at = now() + interval '1 hour'"
            )
        )
    for _ in range(20):
        await force(sessions, claimed.calendar_id)
        assert await claim(sessions) == []
    assert await due_after_start(sessions, claimed.calendar_id) == timedelta(seconds=5)


@pytest.mark.parametrize(
    ("platform", "pauses"), [("google", [10, 20, 40, 60, 60]), ("ics", [10, 20, 40, 80, 160, 300, 300])]
)
async def test_asking_does_not_undo_the_backoff(sessions, project, platform, pauses) -> None:
    await seed(sessions, project.id, 1, platform=platform)
    for seconds in pauses:
        (claimed,) = await claim(sessions)
        await fail(sessions, claimed)
        for _ in range(3):
            await force(sessions, "cal_1")
        assert await due_after_start(sessions, "cal_1") == timedelta(seconds=seconds)
        assert await claim(sessions) == []
        async with transaction(sessions) as session:
            await session.execute(text("UPDATE calendars SET next_sync_at = now()"))


async def test_an_ask_during_a_sync_leads_to_one_more(sessions, project) -> None:
    await seed(sessions, project.id, 1)
    (claimed,) = await claim(sessions)
    await force(sessions, claimed.calendar_id)
    row = await factories.load_calendar(sessions, claimed.calendar_id)
    assert row.lease_until is not None
    assert row.next_sync_at < row.lease_until
    assert row.sync_forced


# --- cost --------------------------------------------------------------------------------------------------


async def plans_of(engine: AsyncEngine, work: Any) -> list[dict[str, Any]]:
    """EXPLAIN ANALYZE of every SELECT and UPDATE that `work` sends, with its parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_conn, _cursor, statement, parameters, _context, _many) -> None:
        sent.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        await work()
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)
    plans = []
    async with engine.connect() as connection:
        for statement, parameters in sent:
            if "advisory" in statement:
                continue
            result = await connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
            )
            plans.append(result.scalar_one()[0])
            await connection.rollback()
    return plans


def nodes_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    nodes = [plan]
    for child in plan.get("Plans", []):
        nodes += nodes_of(child)
    return nodes


@pytest.mark.parametrize("due", [0, 300])
async def test_a_claim_does_not_walk_what_is_not_due(
    engine: AsyncEngine, sessions: Sessions, project, other_project, due: int
) -> None:
    async with transaction(sessions) as session:
        await session.execute(
            text("INSERT INTO projects (id, name) SELECT 'proj_' || n, 'x' FROM generate_series(1, 2000) n")
        )
        await session.execute(
            text(
                """
                INSERT INTO calendars (id, project_id, platform, next_sync_at)
                SELECT 'cal_' || n, 'proj_' || (1 + n % 2000), CASE WHEN n % 3 = 0 THEN 'ics' ELSE 'google' END,
                       now() + interval '1 hour' + n * interval '10 ms'
                FROM generate_series(1, 40000) n
                """
            )
        )
    await seed(sessions, other_project.id, due, name="due")
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("ANALYZE calendars"))
        await connection.execute(text("ANALYZE credentials"))

    plans = await plans_of(engine, lambda: Worker(sessions).claim())
    assert len(plans) == (1 if due == 0 else 4)
    for plan in plans:
        for node in nodes_of(plan["Plan"]):
            assert node["Node Type"] != "Seq Scan" or node.get("Relation Name") != "calendars", node
            assert node["Actual Rows"] * node["Actual Loops"] <= 400, node
            assert node.get("Rows Removed by Filter", 0) * node["Actual Loops"] <= 400, node
        buffers = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        assert buffers < 3_000, plan
