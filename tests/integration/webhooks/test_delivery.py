"""The worker's side of webhooks against a real receiver: leases, retries, isolation, and what endpoints may do."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import hmac
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import insert, select, text, update
from structlog.testing import capture_logs

from app.core.clock import utcnow
from app.core.crypto import SecretBox
from app.core.db import Sessions, transaction
from app.core.ids import new_id
from app.models import WebhookDelivery, WebhookSubscription
from app.settings import Settings
from app.webhooks import outbox, service
from app.webhooks.delivery import Deliverer
from app.webhooks.payloads import CalendarFacts
from app.webhooks.repository import claims
from app.webhooks.retention import prune_deliveries
from app.webhooks.schemas import WebhookCreate, WebhookUpdate
from tests.conftest import TestProject
from tests.fakes.receiver import Answer, Receiver
from tests.fakes.server import serve
from workers.work_loop import WorkLoop

CALENDAR = CalendarFacts("cal_0123456789abcdef", deduplication_key=None, metadata={"name": "Zoë"})


@dataclass
class Webhooks:
    """Subscriptions at one receiver, each with its own path, and a deliverer to send to them."""

    settings: Settings
    sessions: Sessions
    project_id: str
    receiver: Receiver
    url: str
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def box(self) -> SecretBox:
        return SecretBox(self.settings.fernet_keys)

    async def subscribe(self, path: str = "/", *, url: str | None = None) -> str:
        body = WebhookCreate(url=url or self.url + path, triggers=["calendar.state_change"])
        async with transaction(self.sessions) as session:
            created = await service.create_webhook(session, self.box, self.settings, self.project_id, body)
        self.secrets[created.id] = created.secret
        return created.id

    async def add(self, subscription_id: str, count: int = 1, **values: Any) -> list[str]:
        """Pending deliveries, due now; their ids."""
        added = []
        async with transaction(self.sessions) as session:
            for _ in range(count):
                row = _a_delivery(subscription_id) | values
                await session.execute(insert(WebhookDelivery).values(**row))
                added.append(row["id"])
        return added

    async def announce(self) -> None:
        async with transaction(self.sessions) as session:
            await outbox.announce(
                session,
                project_id=self.project_id,
                trigger="calendar.state_change",
                calendar=CALENDAR,
                data={"state": "disconnected"},
            )

    async def rows(self) -> list[WebhookDelivery]:
        async with self.sessions() as session:
            statement = select(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id)
            return list(await session.scalars(statement))

    async def row(self, delivery_id: str) -> WebhookDelivery:
        return next(row for row in await self.rows() if row.id == delivery_id)

    async def subscription(self, subscription_id: str) -> WebhookSubscription:
        async with self.sessions() as session:
            statement = select(WebhookSubscription).where(WebhookSubscription.id == subscription_id)
            return (await session.scalars(statement)).one()

    async def set_subscription(self, subscription_id: str, **values: Any) -> None:
        async with transaction(self.sessions) as session:
            await session.execute(
                update(WebhookSubscription).where(WebhookSubscription.id == subscription_id).values(**values)
            )

    async def patch(self, subscription_id: str, **fields: Any) -> None:
        body = WebhookUpdate.model_validate(fields)
        async with transaction(self.sessions) as session:
            await service.update_webhook(session, self.settings, self.project_id, subscription_id, body)

    async def make_due(self) -> None:
        """As if the time had passed: leases run out, retries come."""
        async with transaction(self.sessions) as session:
            await session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.status == "pending")
                .values(next_attempt_at=WebhookDelivery.created_at)
            )

    def deliverer(self, *, verify: ssl.SSLContext | bool = True, **settings: Any) -> Deliverer:
        changed = self.settings.model_copy(update=settings)
        return Deliverer(settings=changed, sessions=self.sessions, box=self.box, verify=verify)

    async def deliver(self, **options: Any) -> None:
        """Everything that is due, by a deliverer of its own."""
        async with self.deliverer(**options) as deliverer:
            await drain(deliverer)


def _a_delivery(subscription_id: str) -> dict[str, Any]:
    delivery_id = new_id("dlv")
    key = f"key-of-{delivery_id}"
    return {
        "id": delivery_id,
        "subscription_id": subscription_id,
        "trigger": "calendar.state_change",
        "idempotency_key": key,
        "body": b'{"idempotency_key":"' + key.encode() + b'"}',
        "next_attempt_at": utcnow() - timedelta(seconds=1),
    }


async def drain(deliverer: Deliverer, limit: int = 20) -> None:
    while claimed := await deliverer.claim(limit):
        await asyncio.gather(*(deliverer.handle(delivery) for delivery in claimed))


@pytest.fixture
async def webhooks(settings: Settings, sessions: Sessions, project: TestProject) -> AsyncIterator[Webhooks]:
    receiver = Receiver()
    async with serve(receiver) as url:
        yield Webhooks(settings, sessions, project.id, receiver, url)


def _last_attempt(row: WebhookDelivery) -> dict[str, Any]:
    return row.attempts[-1]


# -- one delivery -------------------------------------------------------------------------------------------


async def test_a_delivery_is_signed_in_both_schemes_and_recorded(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe("/hook")
    await webhooks.announce()
    webhooks.receiver.answer = Answer(202, b"tha\x00nks " + "ä".encode() * 600)
    await webhooks.deliver()
    (got,) = webhooks.receiver.received
    (row,) = await webhooks.rows()
    secret = webhooks.secrets[subscription]
    assert got.path == "/hook"
    assert got.headers["content-type"] == "application/json"
    assert got.body == row.body
    payload = got.verify(secret)
    assert payload["idempotency_key"] == got.id == row.idempotency_key
    assert payload["calendar_metadata"] == {"name": "Zoë"}
    attendee = hmac.digest(base64.b64decode(secret), got.body, hashlib.sha256)
    assert got.headers["x-webhook-signature"] == base64.b64encode(attendee).decode()
    assert (row.status, row.next_attempt_at, row.lease_token) == ("success", None, None)
    assert row.finished_at is not None
    (attempt,) = row.attempts
    assert attempt["status_code"] == 202
    assert attempt["error"] is None
    assert attempt["response"] == "tha\ufffdnks " + "ä" * 492
    assert attempt["duration_ms"] >= 0
    assert abs(datetime.fromisoformat(attempt["at"]) - utcnow()) < timedelta(seconds=30)


async def test_retries_carry_the_same_id_and_bytes_and_the_last_one_fails(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription)
    webhooks.receiver.answer = Answer(500, b"down")
    for number, wait in enumerate((60, 600, 6000), 1):
        await webhooks.deliver(webhook_retry_schedule_seconds=(60.0, 600.0, 6000.0))
        row = await webhooks.row(delivery)
        assert (row.status, row.retry_count, row.lease_token) == ("pending", number, None)
        assert row.next_attempt_at is not None
        waits = (row.next_attempt_at - utcnow()).total_seconds()
        assert wait - 30 < waits <= wait * 1.2
        await webhooks.make_due()
    await webhooks.deliver(webhook_retry_schedule_seconds=(60.0, 600.0, 6000.0))
    row = await webhooks.row(delivery)
    assert (row.status, row.next_attempt_at, len(row.attempts)) == ("failed", None, 4)
    assert {(got.id, got.body) for got in webhooks.receiver.received} == {(row.idempotency_key, row.body)}
    assert _last_attempt(row)["error"] == "status: answered 500 instead of 2xx"
    assert _last_attempt(row)["response"] == "down"
    for got in webhooks.receiver.received:
        got.verify(webhooks.secrets[subscription])


async def test_after_a_rotation_both_secrets_verify_for_a_day(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    old = webhooks.secrets[subscription]
    async with transaction(webhooks.sessions) as session:
        rotated = await service.rotate_secret(session, webhooks.box, webhooks.project_id, subscription)
    await webhooks.add(subscription)
    await webhooks.deliver()
    (got,) = webhooks.receiver.received
    assert len(got.headers["webhook-signature"].split()) == 2
    got.verify(old)
    got.verify(rotated.secret)
    attendee = hmac.digest(base64.b64decode(rotated.secret), got.body, hashlib.sha256)
    assert got.headers["x-webhook-signature"] == base64.b64encode(attendee).decode()

    box = webhooks.box
    context = f"webhook_subscriptions:{subscription}"
    current, former = box.open(context, (await webhooks.subscription(subscription)).secrets_sealed)
    in_a_day = datetime.fromisoformat(former["until"]) - utcnow()
    assert timedelta(hours=23, minutes=59) < in_a_day <= timedelta(hours=24)
    expired = [current, {**former, "until": "2020-01-01T00:00:00.000000Z"}]
    await webhooks.set_subscription(subscription, secrets_sealed=box.seal(context, expired))
    await webhooks.add(subscription)
    await webhooks.deliver()
    assert len(webhooks.receiver.received[-1].headers["webhook-signature"].split()) == 1


async def test_a_secret_that_cannot_be_opened_is_a_failed_attempt_and_retried_by_the_schedule(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    sealed = (await webhooks.subscription(subscription)).secrets_sealed
    foreign = webhooks.box.seal("webhook_subscriptions:another", [{"secret": "x", "until": None}])
    await webhooks.set_subscription(subscription, secrets_sealed=foreign)
    (delivery,) = await webhooks.add(subscription)
    with capture_logs() as logs:
        await webhooks.deliver(webhook_retry_schedule_seconds=(3600.0,))
    assert webhooks.receiver.received == []
    row = await webhooks.row(delivery)
    assert (row.status, row.retry_count, row.lease_token) == ("pending", 1, None)
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > utcnow() + timedelta(minutes=50)
    assert _last_attempt(row)["error"].startswith("secret: the stored secret can no longer be decrypted")
    (line,) = [line for line in logs if line["event"] == "webhook_secret_unreadable"]
    assert (line["webhook_id"], line.get("exc_info")) == (subscription, None)
    assert (await webhooks.subscription(subscription)).failing_since is None  # it is not the endpoint's fault
    await webhooks.set_subscription(subscription, secrets_sealed=sealed)
    await webhooks.make_due()
    await webhooks.deliver()
    assert (await webhooks.row(delivery)).status == "success"


# -- leases -------------------------------------------------------------------------------------------------


async def test_a_worker_that_dies_while_sending_leaves_a_delivery_that_goes_out_again(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription)
    webhooks.receiver.script.append(Answer(delay=30))
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(10)
        sending = asyncio.create_task(deliverer.handle(claimed))
        await webhooks.receiver.wait_for(1)
        sending.cancel()
        await asyncio.wait([sending])
    row = await webhooks.row(delivery)
    assert (row.status, row.attempts) == ("pending", [])
    assert row.next_attempt_at is not None
    until = (row.next_attempt_at - utcnow()).total_seconds()
    assert webhooks.settings.webhook_timeout_seconds < until <= webhooks.settings.webhook_timeout_seconds + 10
    await webhooks.deliver()
    assert len(webhooks.receiver.received) == 1  # not while the lease runs
    await webhooks.make_due()
    await webhooks.deliver()
    first, second = webhooks.receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    assert (await webhooks.row(delivery)).status == "success"


async def test_one_whose_lease_ran_out_records_nothing_over_its_successor(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription)
    webhooks.receiver.script.append(Answer(500, delay=0.3))
    async with webhooks.deliverer() as slow, webhooks.deliverer() as quick:
        (claimed,) = await slow.claim(10)
        sending = asyncio.create_task(slow.handle(claimed))
        await webhooks.receiver.wait_for(1)
        await webhooks.make_due()
        await drain(quick)
        with capture_logs() as logs:
            await sending
    assert "webhook_lease_lost" in [line["event"] for line in logs]
    row = await webhooks.row(delivery)
    assert (row.status, len(row.attempts)) == ("success", 1)


async def test_an_attempt_that_could_outlast_its_lease_is_not_begun(webhooks: Webhooks, monkeypatch) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription)
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(10)
        now = asyncio.get_running_loop().time() + 6
        monkeypatch.setattr("app.webhooks.delivery.time.monotonic", lambda: now)
        await deliverer.handle(claimed)
    assert webhooks.receiver.received == []


async def test_several_workers_share_the_work_and_never_send_one_delivery_twice_at_once(
    webhooks: Webhooks,
) -> None:
    paths = [f"/{number}" for number in range(5)]
    for path in paths:
        await webhooks.add(await webhooks.subscribe(path), 12)
    webhooks.receiver.answer = Answer(delay=0.02)

    async def work(deliverer: Deliverer) -> None:
        async with asyncio.timeout(15):
            while len(webhooks.receiver.received) < 60:
                claimed = await deliverer.claim(7)
                await asyncio.gather(*(deliverer.handle(delivery) for delivery in claimed))

    async with webhooks.deliverer() as first, webhooks.deliverer() as second, webhooks.deliverer() as third:
        await asyncio.gather(work(first), work(second), work(third))
    assert Counter(webhooks.receiver.ids).most_common(1)[0][1] == 1
    assert {row.status for row in await webhooks.rows()} == {"success"}
    assert max(webhooks.receiver.most_at_once.values()) <= webhooks.settings.webhook_endpoint_concurrency


async def test_the_limit_of_an_endpoint_holds_over_all_workers(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 30)
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(webhooks.deliverer()) for _ in range(6)]
        claims = await asyncio.gather(*(worker.claim(10) for worker in workers))
        assert sum(len(claimed) for claimed in claims) == webhooks.settings.webhook_endpoint_concurrency
        assert await workers[0].claim(10) == []


# -- isolation ----------------------------------------------------------------------------------------------


async def test_endpoints_take_turns(webhooks: Webhooks) -> None:
    subscriptions = [await webhooks.subscribe(f"/{number}") for number in range(5)]
    for subscription in subscriptions:
        await webhooks.add(subscription, 4)
    async with webhooks.deliverer() as deliverer:
        seen = [await deliverer.claim(2) for _ in range(5)]
    first_ten = [claimed.due.endpoint_id for claims in seen for claimed in claims]
    assert sorted(first_ten) == sorted(subscriptions * 2)
    async with webhooks.deliverer() as deliverer:
        at_once = [claimed.due.endpoint_id for claimed in await deliverer.claim(7)]
    assert len(at_once) == 7
    assert set(at_once) == set(subscriptions)


async def test_an_endpoints_deliveries_go_out_oldest_first(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    times = [utcnow() - timedelta(minutes=minutes) for minutes in (5, 1, 9, 3)]
    ids = [(await webhooks.add(subscription, next_attempt_at=at))[0] for at in times]
    async with webhooks.deliverer(webhook_endpoint_concurrency=1) as deliverer:
        await drain(deliverer, limit=1)
    expected = [f"key-of-{ids[place]}" for place in (2, 0, 3, 1)]
    assert webhooks.receiver.ids == expected


async def test_a_hanging_endpoint_delays_nobody_else(webhooks: Webhooks) -> None:
    hanging, lively = await webhooks.subscribe("/hang"), await webhooks.subscribe("/lively")
    await webhooks.add(hanging, 40)
    await webhooks.add(lively, 10)
    webhooks.receiver.answers["/hang"] = Answer(delay=30)
    async with webhooks.deliverer() as deliverer:
        tasks = []
        async with asyncio.timeout(5):
            while webhooks.receiver.paths.count("/lively") < 10:
                tasks += [
                    asyncio.create_task(deliverer.handle(claimed)) for claimed in await deliverer.claim(8)
                ]
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    done = [row for row in await webhooks.rows() if row.status == "success"]
    assert [row.subscription_id for row in done] == [lively] * 10


@contextlib.asynccontextmanager
async def working(webhooks: Webhooks, workers: int = 1, **settings: Any) -> AsyncIterator[None]:
    """Workers' loops, of 16 slots each; what they have under way at the end is cut."""
    options = {"webhook_concurrency": 16, "webhook_timeout_seconds": 60.0, **settings}
    async with contextlib.AsyncExitStack() as stack:
        loops = []
        for _ in range(workers):
            deliverer = await stack.enter_async_context(webhooks.deliverer(**options))
            work_loop = WorkLoop(
                "deliveries",
                claim=deliverer.claim,
                handle=deliverer.handle,
                concurrency=options["webhook_concurrency"],
                tick_seconds=0.05,
            )
            stack.push_async_callback(work_loop.finish, 0)
            loops.append(asyncio.create_task(work_loop.run()))
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.wait(loops)


async def _until_no_more_comes(receiver: Receiver) -> None:
    async with asyncio.timeout(15):
        before = -1
        while len(receiver.received) > before:
            before = len(receiver.received)
            await asyncio.sleep(0.3)


async def _until_arrived(receiver: Receiver, path: str, count: int) -> None:
    async with asyncio.timeout(15):
        while receiver.paths.count(path) < count:
            await asyncio.sleep(0.01)


async def test_a_hundred_slow_endpoints_of_a_project_do_not_delay_another_projects(
    webhooks: Webhooks, other_project: TestProject
) -> None:
    for number in range(40):
        path = f"/slow/{number}"
        webhooks.receiver.answers[path] = Answer(delay=60)  # and then 200
        await webhooks.add(await webhooks.subscribe(path), 4)
    others = dataclasses.replace(webhooks, project_id=other_project.id)
    fast = await others.subscribe("/fast")
    async with working(webhooks, workers=2):
        await _until_no_more_comes(webhooks.receiver)
        under_way = len(webhooks.receiver.under_way)
        await others.add(fast, 20)
        await _until_arrived(webhooks.receiver, "/fast", 20)
        assert len(webhooks.receiver.under_way) == under_way
    assert under_way >= 2 * 12  # an idle system uses most of its slots for one project


async def test_slow_endpoints_do_not_delay_a_fast_one_of_the_same_project(
    webhooks: Webhooks, monkeypatch
) -> None:
    monkeypatch.setattr("app.webhooks.delivery._SLOW_SECONDS", 0.1)
    slow = [await webhooks.subscribe(f"/slow/{number}") for number in range(20)]
    for number, subscription in enumerate(slow):
        webhooks.receiver.answers[f"/slow/{number}"] = Answer(delay=0.15)
        await webhooks.add(subscription)
    await webhooks.deliver()
    for number, subscription in enumerate(slow):
        assert (await webhooks.subscription(subscription)).is_slow
        webhooks.receiver.answers[f"/slow/{number}"] = Answer(delay=60)
        await webhooks.add(subscription, 4)
    fast = await webhooks.subscribe("/fast")
    async with working(webhooks):
        await _until_no_more_comes(webhooks.receiver)
        await webhooks.add(fast, 20)
        await _until_arrived(webhooks.receiver, "/fast", 20)
        assert len(webhooks.receiver.under_way) <= 8


async def test_an_endpoint_that_takes_long_has_half_of_the_slots_until_it_is_quick_again(
    webhooks: Webhooks, monkeypatch
) -> None:
    monkeypatch.setattr("app.webhooks.delivery._SLOW_SECONDS", 0.2)
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 12)
    claimed = []
    async with webhooks.deliverer() as deliverer:
        for delay in (0.25, 0, 0):
            webhooks.receiver.answer = Answer(delay=delay)
            due = await deliverer.claim(10)
            claimed.append(len(due))
            await asyncio.gather(*(deliverer.handle(delivery) for delivery in due))
    assert claimed == [4, 2, 4]


async def test_dead_and_hanging_endpoints_delay_nobody_else(
    webhooks: Webhooks, other_project: TestProject
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        for number in range(30):
            path = f"/hangs/{number}"
            webhooks.receiver.answers[path] = Answer(delay=60)
            await webhooks.add(await webhooks.subscribe(path), 4)
            await webhooks.add(await webhooks.subscribe(url=dead), 4)
        others = dataclasses.replace(webhooks, project_id=other_project.id)
        fast = [await others.subscribe("/fast"), await webhooks.subscribe("/own")]
        async with working(webhooks, webhook_timeout_seconds=2.0, webhook_retry_schedule_seconds=(3600.0,)):
            await _until_no_more_comes(webhooks.receiver)
            for subscription in fast:
                await webhooks.add(subscription, 20)
            for path in ("/fast", "/own"):
                await _until_arrived(webhooks.receiver, path, 20)


async def test_a_failing_endpoint_is_tried_with_one_delivery_at_a_time_until_it_recovers(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 12)
    webhooks.receiver.script.extend([Answer(503)] * 4)
    async with webhooks.deliverer(webhook_retry_schedule_seconds=(3600.0,)) as deliverer:
        first = await deliverer.claim(10)
        await asyncio.gather(*(deliverer.handle(claimed) for claimed in first))
        assert (await webhooks.subscription(subscription)).failing_since is not None
        second = await deliverer.claim(10)
        assert await deliverer.claim(10) == []
        await asyncio.gather(*(deliverer.handle(claimed) for claimed in second))
        assert (await webhooks.subscription(subscription)).failing_since is None
        third = await deliverer.claim(10)
    assert [len(first), len(second), len(third)] == [4, 1, 4]


async def test_failing_endpoints_use_half_of_a_worker_at_most(webhooks: Webhooks) -> None:
    for number in range(4):
        failing = await webhooks.subscribe(f"/failing/{number}")
        await webhooks.set_subscription(failing, failing_since=utcnow())
        await webhooks.add(failing, 3)
    healthy = await webhooks.subscribe("/healthy")
    async with webhooks.deliverer(
        webhook_concurrency=4, webhook_retry_schedule_seconds=(3600.0,)
    ) as deliverer:
        probes = await deliverer.claim(4)
        assert len(probes) == 2
        assert await deliverer.claim(2) == []
        await webhooks.add(healthy, 2)
        assert [claimed.due.endpoint_id for claimed in await deliverer.claim(2)] == [healthy, healthy]
        webhooks.receiver.answer = Answer(500)
        await asyncio.gather(*(deliverer.handle(claimed) for claimed in probes))
        assert len(await deliverer.claim(4)) == 2


async def test_connections_are_kept_and_used_again(webhooks: Webhooks) -> None:
    await webhooks.add(await webhooks.subscribe(), 6)
    async with webhooks.deliverer(webhook_endpoint_concurrency=1) as deliverer:
        await drain(deliverer)
    assert len(webhooks.receiver.received) == 6
    assert len({got.client for got in webhooks.receiver.received}) == 1


async def test_claiming_uses_an_index_at_every_step_also_on_tables_never_analysed(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 3)
    walk = {"after": "", "limit": 10, "per_endpoint": 4, "full_projects": [], "projects_full_of_slow": []}
    lease = {
        "endpoints": [subscription],
        "given": [4],
        "slots": [4],
        "lease_token": "t",
        "lease_seconds": 1.0,
    }
    park = {"endpoints": [subscription], "keep_days": 30, "limit": 10}
    steps: list[tuple[Any, dict[str, Any], set[str]]] = [
        (claims._WAKE, {"limit": 10}, {"ix_webhook_deliveries_waiting"}),
        (
            claims._FIND_READY,
            {**walk, "is_full_of_slow": False},
            {"ix_webhook_deliveries_ready", "ix_webhook_deliveries_leased"},
        ),
        (claims._CLAIM, lease, {"ix_webhook_deliveries_ready", "ix_webhook_deliveries_leased"}),
        (claims._PARK, park, {"ix_webhook_deliveries_ready"}),
    ]
    async with transaction(webhooks.sessions) as session:
        await session.execute(claims._USE_INDEXES)
        for statement, values, indexes in steps:
            plan = "\n".join(await session.scalars(text(f"EXPLAIN {statement}"), values))
            assert "Seq Scan" not in plan
            assert indexes <= {word for word in plan.split() if word.startswith("ix_")}


async def test_endpoints_that_have_nothing_due_are_not_looked_at(webhooks: Webhooks) -> None:
    """Thousands that wait for a retry, are switched off or have their due deliveries under way cost a claim nothing."""
    for number in range(50):
        waiting, off = (
            await webhooks.subscribe(f"/waits/{number}"),
            await webhooks.subscribe(f"/off/{number}"),
        )
        await webhooks.add(waiting, 2)
        await webhooks.add(off, 2)
        await webhooks.set_subscription(off, is_active=False)
    webhooks.receiver.answer = Answer(500)
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    async with transaction(webhooks.sessions) as session:
        await session.execute(claims._USE_INDEXES)
        values = {
            "after": "", "limit": 100, "per_endpoint": 4, "full_projects": [], "projects_full_of_slow": [],
            "is_full_of_slow": False,
        }  # fmt: skip
        (plan,) = (
            await session.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {claims._FIND_READY}"), values)
        ).scalar_one()
    assert _rows_read(plan["Plan"]) == 0
    assert {row.status for row in await webhooks.rows()} == {"pending"}


def _rows_read(plan: dict[str, Any]) -> int:
    """Rows that came out of tables, at all places of a plan."""
    own = plan["Actual Rows"] * plan["Actual Loops"] if "Relation Name" in plan else 0
    return int(own) + sum(_rows_read(part) for part in plan.get("Plans", []))


# -- what endpoints answer ----------------------------------------------------------------------------------


async def test_retry_after_is_honoured_for_the_endpoint_within_a_day(webhooks: Webhooks) -> None:
    for status, value, seconds in ((429, "7200", 7200), (503, "999999999", 86_400)):
        subscription = await webhooks.subscribe()
        delivery, *_ = await webhooks.add(subscription, 5)
        webhooks.receiver.script.append(Answer(status, headers={"Retry-After": value}))
        async with webhooks.deliverer() as deliverer:
            (claimed,) = await deliverer.claim(1)
            await deliverer.handle(claimed)
            assert await deliverer.claim(10) == []  # the others wait too
        row = await webhooks.row(delivery)
        assert row.next_attempt_at is not None
        assert seconds - 30 < (row.next_attempt_at - utcnow()).total_seconds() <= seconds
        await webhooks.set_subscription(subscription, paused_until=utcnow())
        webhooks.receiver.received.clear()
        await webhooks.deliver()
        assert len(webhooks.receiver.received) == 4


async def test_the_schedule_holds_where_retry_after_is_shorter_or_given_with_another_status(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 2)
    webhooks.receiver.script.append(Answer(500, headers={"Retry-After": "7200"}))
    webhooks.receiver.script.append(Answer(429, headers={"Retry-After": "1"}))
    await webhooks.deliver(webhook_retry_schedule_seconds=(600.0,), webhook_endpoint_concurrency=1)
    await webhooks.set_subscription(subscription, paused_until=None)
    for row in await webhooks.rows():
        assert row.next_attempt_at is not None
        assert 570 < (row.next_attempt_at - utcnow()).total_seconds() <= 720


async def test_a_410_switches_off_and_switching_on_again_delivers_what_waits(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 3)
    webhooks.receiver.answer = Answer(410, b"gone")
    with capture_logs() as logs:
        await webhooks.deliver(webhook_endpoint_concurrency=1)
    off = await webhooks.subscription(subscription)
    assert not off.is_active
    assert off.disabled_reason is not None
    assert off.disabled_reason.startswith("The endpoint answered 410 Gone at 2")
    (line,) = [line for line in logs if line["event"] == "webhook_disabled"]
    assert (line["webhook_id"], line["reason"]) == (subscription, off.disabled_reason)
    assert len(webhooks.receiver.received) == 1
    assert {row.status for row in await webhooks.rows()} == {"pending"}
    webhooks.receiver.answer = Answer()
    await webhooks.patch(subscription, is_active=True)
    await webhooks.deliver()
    assert len(webhooks.receiver.received) == 4
    assert {row.status for row in await webhooks.rows()} == {"success"}


async def test_what_waits_for_an_endpoint_that_is_off_is_kept_and_given_up_after_the_retention(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    kept = await webhooks.add(subscription, 3)
    (old,) = await webhooks.add(subscription, created_at=utcnow() - timedelta(days=31))
    await webhooks.set_subscription(subscription, is_active=False)
    await webhooks.deliver()
    rows = {row.id: row for row in await webhooks.rows()}
    assert [rows[row].status for row in kept] == ["pending"] * 3
    assert all(rows[row].waits for row in kept)  # no claim looks at them now
    assert (rows[old].status, rows[old].next_attempt_at) == ("failed", None)
    assert rows[old].finished_at is not None
    await webhooks.deliver()
    assert webhooks.receiver.received == []
    await webhooks.patch(subscription, is_active=True)
    await webhooks.deliver()
    assert sorted(webhooks.receiver.ids) == sorted(f"key-of-{row}" for row in kept)


async def test_what_an_older_release_makes_due_is_found(webhooks: Webhooks) -> None:
    """It knows nothing of `waits`."""
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription, waits=True, next_attempt_at=utcnow() + timedelta(days=1))
    await webhooks.deliver()
    assert webhooks.receiver.received == []
    async with transaction(webhooks.sessions) as session:
        await session.execute(text("UPDATE webhook_deliveries SET next_attempt_at = created_at"))
    await webhooks.deliver()
    assert (await webhooks.row(delivery)).status == "success"


async def test_an_endpoint_that_failed_everything_for_five_days_is_switched_off(webhooks: Webhooks) -> None:
    dead, recovering = await webhooks.subscribe("/dead"), await webhooks.subscribe("/recovering")
    for subscription in (dead, recovering):
        await webhooks.set_subscription(subscription, failing_since=utcnow() - timedelta(days=4, hours=23))
        await webhooks.add(subscription)
    webhooks.receiver.answer = Answer(500)
    await webhooks.deliver(webhook_retry_schedule_seconds=(3600.0, 3600.0))
    assert (await webhooks.subscription(dead)).is_active

    since = utcnow() - timedelta(days=5, minutes=1)
    for subscription in (dead, recovering):
        await webhooks.set_subscription(subscription, failing_since=since, failing_days=5)
    await webhooks.make_due()
    async with webhooks.deliverer(webhook_retry_schedule_seconds=(3600.0, 3600.0)) as deliverer:
        for claimed in await deliverer.claim(10):
            failing = claimed.due.endpoint_id == dead
            webhooks.receiver.answer = Answer(500 if failing else 200)
            with capture_logs() as logs:
                await deliverer.handle(claimed)
            assert ("webhook_disabled" in [line["event"] for line in logs]) is failing
    off, on = await webhooks.subscription(dead), await webhooks.subscription(recovering)
    assert not off.is_active
    assert off.disabled_reason is not None
    assert "No attempt has succeeded since" in off.disabled_reason
    assert "answered 500" in off.disabled_reason
    assert (on.is_active, on.failing_since) == (True, None)


async def _a_day_passes(webhooks: Webhooks, subscription: str, days: int = 1) -> None:
    row = await webhooks.subscription(subscription)
    assert row.failing_since is not None
    assert row.failing_day_at is not None
    await webhooks.set_subscription(
        subscription,
        failing_since=row.failing_since - timedelta(days=days),
        failing_day_at=row.failing_day_at - timedelta(days=days),
    )


async def test_an_endpoint_is_switched_off_by_failures_on_five_days_and_not_by_one_then_and_one_now(
    webhooks: Webhooks,
) -> None:
    webhooks.receiver.answer = Answer(500)
    quiet, dead = await webhooks.subscribe("/quiet"), await webhooks.subscribe("/dead")
    for day in range(6):
        assert (await webhooks.subscription(dead)).is_active
        await webhooks.add(dead, 2)
        if day in (0, 5):
            await webhooks.add(quiet, 2)
        await webhooks.deliver(webhook_retry_schedule_seconds=())
        await _a_day_passes(webhooks, dead)
        await _a_day_passes(webhooks, quiet)
    assert not (await webhooks.subscription(dead)).is_active
    after = await webhooks.subscription(quiet)
    assert (after.is_active, after.failing_days) == (True, 2)


async def test_what_an_old_url_answers_is_not_held_against_a_new_one(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe("/old")
    await webhooks.add(subscription)
    webhooks.receiver.script.append(Answer(410, delay=0.2))
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(10)
        sending = asyncio.create_task(deliverer.handle(claimed))
        await webhooks.receiver.wait_for(1)
        await webhooks.patch(subscription, url=webhooks.url + "/new")
        await sending
    after = await webhooks.subscription(subscription)
    assert (after.is_active, after.failing_since) == (True, None)
    await webhooks.make_due()
    await webhooks.deliver()
    assert [got.path for got in webhooks.receiver.received] == ["/old", "/new"]


async def test_redirects_are_failures_and_not_followed(webhooks: Webhooks) -> None:
    (delivery,) = await webhooks.add(await webhooks.subscribe("/from"))
    webhooks.receiver.answer = Answer(307, headers={"Location": webhooks.url + "/to"})
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(1)
        await deliverer.handle(claimed)
    assert [got.path for got in webhooks.receiver.received] == ["/from"]
    attempt = _last_attempt(await webhooks.row(delivery))
    assert attempt["status_code"] == 307
    assert attempt["error"].startswith("redirect: ")


@pytest.mark.settings(webhook_timeout_seconds=0.3)
async def test_silent_and_dribbling_endpoints_are_cut_off_in_time(webhooks: Webhooks) -> None:
    silent, dribbling = await webhooks.subscribe("/silent"), await webhooks.subscribe("/dribbling")
    for subscription, answer in ((silent, Answer(delay=30)), (dribbling, Answer(dribble=0.02))):
        (delivery,) = await webhooks.add(subscription)
        webhooks.receiver.answer = answer
        async with webhooks.deliverer() as deliverer:
            (claimed,) = await deliverer.claim(1)
            async with asyncio.timeout(5):
                await deliverer.handle(claimed)
        row = await webhooks.row(delivery)
        assert row.status == "pending"
        assert _last_attempt(row)["error"] == "timeout: no complete answer within 0.3 seconds"
        assert 250 <= _last_attempt(row)["duration_ms"] < 4000
        await webhooks.set_subscription(subscription, is_active=False)


async def test_an_answer_without_end_is_read_in_part_only(webhooks: Webhooks) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while sent < 200_000_000:
                writer.write(b"x" * 65_536)
                await writer.drain()
                sent += 65_536
        writer.close()

    async with _raw_server(flood) as url:
        (delivery,) = await webhooks.add(await webhooks.subscribe(url=url))
        await webhooks.deliver()
    row = await webhooks.row(delivery)
    assert (row.status, _last_attempt(row)["response"]) == ("success", "x" * 500)
    assert sent < 50_000_000  # what socket buffers swallow


async def test_connections_that_fail_are_recorded_with_a_word(webhooks: Webhooks, monkeypatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        if host in {"nowhere.example", b"nowhere.example"}:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with _raw_server(_hang_up) as broken:
        expected = {
            f"http://127.0.0.1:{port}/": "connection: the endpoint does not accept connections",
            "https://nowhere.example/": "dns: the host name does not resolve",
            f"{broken}/": "connection: broken off before the answer was complete (RemoteProtocolError)",
            f"{webhooks.url.replace('http', 'https')}/": "tls: no secure connection could be made",
        }
        for url, error in expected.items():
            (delivery,) = await webhooks.add(await webhooks.subscribe(url=url))
            async with webhooks.deliverer() as deliverer:
                (claimed,) = await deliverer.claim(1)
                await deliverer.handle(claimed)
            row = await webhooks.row(delivery)
            assert (row.status, _last_attempt(row)["error"]) == ("pending", error)
            await webhooks.set_subscription(row.subscription_id, is_active=False)


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


@contextlib.asynccontextmanager
async def _raw_server(handle: Any) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# -- safety -------------------------------------------------------------------------------------------------


async def test_a_name_that_resolves_to_a_private_address_is_refused_where_the_socket_opens(
    webhooks: Webhooks, monkeypatch
) -> None:
    real = socket.getaddrinfo
    port = int(webhooks.url.rpartition(":")[2])
    resolved: dict[str, list[str]] = {
        "loopback.example": ["127.0.0.1"],
        "mixed.example": ["1.1.1.1", "127.0.0.1"],
        "metadata.example": ["169.254.169.254"],
        "six.example": ["::1"],
        "mapped.example": ["::ffff:10.0.0.1"],
    }

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in resolved:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in resolved[name]
            ]
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    deliveries = {}
    for name in resolved:
        (delivery,) = await webhooks.add(await webhooks.subscribe(url=f"https://{name}:{port}/"))
        deliveries[name] = delivery
    await webhooks.deliver(allow_private_network_targets=False, webhook_retry_schedule_seconds=(60.0,))
    assert webhooks.receiver.received == []
    for name, delivery in deliveries.items():
        attempt = _last_attempt(await webhooks.row(delivery))
        assert attempt["error"] == f"refused: {name} is not a public address"
        assert attempt["status_code"] is None


async def test_a_url_that_is_no_longer_allowed_is_not_called(webhooks: Webhooks) -> None:
    (delivery,) = await webhooks.add(await webhooks.subscribe())
    options: dict[str, Any] = {"webhook_retry_schedule_seconds": (60.0,)}
    await webhooks.deliver(allow_private_network_targets=False, **options)
    assert webhooks.receiver.received == []
    assert _last_attempt(await webhooks.row(delivery))["error"].startswith(
        "refused: Must be on a public address"
    )
    await webhooks.make_due()
    allowed = frozenset({"127.0.0.1"})
    await webhooks.deliver(allow_private_network_targets=False, webhook_allowed_hosts=allowed, **options)
    assert len(webhooks.receiver.received) == 1


async def test_certificates_are_verified(webhooks: Webhooks, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(chain), append=number > 0)
    options: dict[str, Any] = {
        "allow_private_network_targets": False,
        "webhook_allowed_hosts": frozenset({"localhost", "127.0.0.1"}),
        "webhook_retry_schedule_seconds": (60.0, 60.0, 60.0),
    }
    async with serve(webhooks.receiver, ssl_certfile=str(chain), ssl_keyfile=str(key)) as url:
        (delivery,) = await webhooks.add(
            await webhooks.subscribe(url=url.replace("127.0.0.1", "localhost") + "/tls")
        )
        await webhooks.deliver(**options)  # the system's authorities do not know this one
        error = _last_attempt(await webhooks.row(delivery))["error"]
        assert error == "tls: the certificate is not valid (unable to get local issuer certificate)"
        await webhooks.make_due()
        await webhooks.deliver(verify=_trusting(stranger), **options)
        assert _last_attempt(await webhooks.row(delivery))["error"].startswith("tls: the certificate")
        assert webhooks.receiver.received == []
        await webhooks.make_due()
        await webhooks.deliver(verify=_trusting(authority), **options)
        assert [got.path for got in webhooks.receiver.received] == ["/tls"]
        (wrong_name,) = await webhooks.add(await webhooks.subscribe(url=url))
        await webhooks.deliver(verify=_trusting(authority), **options)
        assert "tls: the certificate is not valid" in _last_attempt(await webhooks.row(wrong_name))["error"]


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# -- upkeep -------------------------------------------------------------------------------------------------


async def test_finished_deliveries_are_pruned_after_the_retention(webhooks: Webhooks, monkeypatch) -> None:
    monkeypatch.setattr("app.core.db._BATCH_ROWS", 2)
    subscription = await webhooks.subscribe()
    old, recent = utcnow() - timedelta(days=31), utcnow() - timedelta(days=29)
    done: dict[str, Any] = {"next_attempt_at": None, "status": "success"}
    await webhooks.add(subscription, 5, **done, finished_at=old, created_at=old)
    kept = await webhooks.add(subscription, 1, **done, finished_at=recent, created_at=old)
    kept += await webhooks.add(subscription, 1, created_at=old, next_attempt_at=old)
    assert await prune_deliveries(webhooks.sessions, webhooks.settings) == 5
    assert sorted(row.id for row in await webhooks.rows()) == sorted(kept)
    assert await prune_deliveries(webhooks.sessions, webhooks.settings) == 0


async def test_the_attempts_of_a_delivery_are_kept_to_the_last_fifty(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    before = [{"at": f"{number}"} for number in range(50)]
    (delivery,) = await webhooks.add(subscription, attempts=before)
    await webhooks.deliver()
    row = await webhooks.row(delivery)
    assert [attempt["at"] for attempt in row.attempts[:-1]] == [f"{number}" for number in range(1, 50)]
    assert datetime.fromisoformat(row.attempts[-1]["at"]).tzinfo == UTC


async def test_a_delivery_deleted_while_it_is_sent_ends_quietly(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription)
    webhooks.receiver.answer = Answer(delay=0.1)
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(1)
        sending = asyncio.create_task(deliverer.handle(claimed))
        await webhooks.receiver.wait_for(1)
        async with transaction(webhooks.sessions) as session:
            await service.delete_webhook(session, webhooks.project_id, subscription)
        await sending
    assert await webhooks.rows() == []
