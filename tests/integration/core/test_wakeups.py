"""Whatever makes work due wakes its queue: after the commit, once, and never after a rollback."""

import asyncio
from datetime import timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError

from app.bots import service as bots
from app.bots.schemas import BotCreate, BotUpdate
from app.calendars import service as calendars
from app.calendars.schemas import CalendarUpdate, FeedCalendarCreate, LocalCalendarCreate
from app.core.clock import utcnow
from app.core.crypto import SecretBox, sha256_hex
from app.core.db import create_engine, create_sessions, transaction
from app.core.ids import new_id
from app.core.wakeups import WakeUps, connect_redis, wake_after_commit
from app.invitations.repository import log as mails
from app.invitations.service import Sender, queue_mails
from app.itip.event import Guest, MailedEvent, Person
from app.models import Calendar, WebhookSubscription
from app.push import repository as channels
from app.schedule import mark_due, request_sync, sync_within
from app.webhooks import outbox
from app.webhooks import service as webhooks
from app.webhooks.payloads import CalendarFacts
from app.webhooks.repository import log as deliveries
from app.webhooks.schemas import WebhookCreate, WebhookUpdate
from tests import factories

LINK = "https://zoom.us/j/5551112222?pwd=hidden-1"
BOB = Guest(email="bob@example.org", name="Bob", is_optional=False, response_status="needs_action")


class RecordedWakeUps(WakeUps):
    """Notes wake-ups in place of sending them."""

    def __init__(self) -> None:
        super().__init__(connect_redis("redis://127.0.0.1:1/0"))
        self.sent: list[tuple[str, float]] = []

    async def wake(self, queue, *, after=0.0):
        self.sent.append((queue, after))


class World:
    """A project with a calendar, a feed, a webhook and a bot, and what the test does in its transaction."""

    def __init__(self, settings, sessions, project) -> None:
        self.settings = settings
        self.sessions = sessions
        self.project_id = project.id
        self.box = SecretBox(settings.required_fernet_keys())

    async def prepare(self) -> None:
        self.calendar_id = await factories.add_calendar(
            self.sessions,
            self.settings,
            self.project_id,
            secrets={"client_secret": "s", "refresh_token": "r"},
            next_sync_at=utcnow() + timedelta(hours=1),
        )
        async with transaction(self.sessions) as session:
            hook = await webhooks.create_webhook(
                session,
                self.box,
                self.settings,
                self.project_id,
                WebhookCreate(
                    url="https://example.com/hook", triggers=["calendar.state_change", "bot.state_change"]
                ),
            )
            self.webhook_id = hook.id
            bot = await bots.create_bot(
                session,
                self.settings,
                self.project_id,
                BotCreate(bot_name="Notetaker", meeting_url=LINK, join_at=utcnow() + timedelta(days=1)),
            )
            self.bot_id = bot.id
        async with transaction(self.sessions) as session:
            await self.announce(session)
            await self.invite(session)
        async with self.sessions() as session:
            page = await deliveries.list_deliveries(
                session, self.webhook_id, status=None, cursor_text=None, limit=1
            )
            self.delivery_id = page.rows[0].id
            event = mails.LoggedEvent(self.calendar_id, "uid-1", None)
            self.mail_id = (await mails.list_mails(session, event, cursor=None, limit=1)).rows[0].mail.id

    async def announce(self, session) -> None:
        facts = CalendarFacts(self.calendar_id, None, None)
        await outbox.announce(
            session,
            project_id=self.project_id,
            trigger="calendar.state_change",
            calendar=facts,
            data={"state": "disconnected"},
        )

    async def redeliver(self, session) -> None:
        await webhooks.redeliver(session, self.project_id, self.delivery_id)

    async def replay(self, session) -> None:
        await webhooks.replay(session, self.project_id, self.webhook_id, utcnow() - timedelta(hours=1))

    async def enable_webhook(self, session) -> None:
        await session.execute(update(WebhookSubscription).values(is_active=False))
        await self.change_webhook(session, is_active=True)

    async def move_webhook(self, session) -> None:
        await self.change_webhook(session, url="https://example.com/other")

    async def change_webhook(self, session, **fields) -> None:
        body = WebhookUpdate.model_validate(fields)
        await webhooks.update_webhook(session, self.settings, self.project_id, self.webhook_id, body)

    async def invite(self, session) -> None:
        start = utcnow() + timedelta(days=1)
        await queue_mails(
            session,
            project_id=self.project_id,
            calendar_id=self.calendar_id,
            event=MailedEvent(
                uid="uid-1",
                sequence=0,
                name="Weekly",
                description=None,
                location=None,
                meeting_url=None,
                start=start,
                end=start + timedelta(hours=1),
                is_all_day=False,
                timezone="Europe/Paris",
                organizer=Person(email="ada@example.com", name=None),
                guests=(BOB,),
            ),
            method="REQUEST",
            recipients=[BOB],
            sender=Sender(mailbox_id=None, email="ada@example.com", name=None, owner_email="ada@example.com"),
            locale="en",
        )

    async def send_mail_again(self, session) -> None:
        await mails.requeue(session, self.mail_id)

    async def create_bot(self, session) -> None:
        await bots.create_bot(
            session, self.settings, self.project_id, BotCreate(bot_name="Another", meeting_url=LINK)
        )

    async def change_bot(self, session) -> None:
        await bots.update_bot(session, self.settings, self.project_id, self.bot_id, BotUpdate(bot_name="New"))

    async def delete_bot(self, session) -> None:
        await bots.delete_bot(session, self.project_id, self.bot_id)

    async def connect_feed(self, session) -> None:
        body = FeedCalendarCreate(platform="ics", feed_url="https://calendar.invalid/feed.ics")
        await calendars.create_calendar(session, self.settings, self.box, self.project_id, body)

    async def create_local(self, session) -> None:
        body = LocalCalendarCreate(
            platform="local", name="Rooms", owner_email="ada@example.com", timezone="Europe/Paris"
        )
        await calendars.create_local_calendar(session, self.settings, self.project_id, body, None)

    async def request_sync(self, session) -> None:
        await request_sync(session, self.calendar_id)

    async def keep_polling(self, session) -> None:
        await sync_within(session, self.calendar_id, timedelta(minutes=20))

    async def reconnect(self, session) -> None:
        await session.execute(
            update(Calendar).where(Calendar.id == self.calendar_id).values(state="disconnected")
        )
        body = CalendarUpdate(client_secret="new", refresh_token="new")
        await calendars.update_calendar(
            session,
            self.settings,
            self.box,
            self.project_id,
            self.calendar_id,
            body=body,
        )

    async def notify(self, session) -> None:
        await mark_due(session, sync_ids=[self.calendar_id], delay=timedelta(seconds=2))

    async def renew_channel(self, session) -> None:
        await mark_due(session, sync_ids=[], renew_ids=[self.calendar_id], delay=timedelta(seconds=2))

    async def close_channels(self, session) -> None:
        await channels.close_channels(session, self.calendar_id)

    async def release_channel(self, session) -> None:
        await channels.release_channel(
            session, sha256_hex("any"), sealed=b"", opens_within=timedelta(seconds=60)
        )


NOW_DUE = {
    World.announce: {"deliveries"},
    World.redeliver: {"deliveries"},
    World.replay: {"deliveries"},
    World.enable_webhook: {"deliveries"},
    World.move_webhook: {"deliveries"},
    World.invite: {"mails"},
    World.send_mail_again: {"mails"},
    World.create_bot: {"bots"},
    World.change_bot: {"bots", "deliveries"},
    World.delete_bot: {"deliveries"},
    World.connect_feed: {"syncs"},
    World.create_local: set(),
    World.keep_polling: set(),  # nothing is due for minutes
    World.request_sync: {"syncs"},
    World.reconnect: {"syncs", "deliveries"},
    World.renew_channel: {"channels"},
    World.close_channels: {"channels"},
    World.release_channel: {"channels"},
}
DUE_LATER = {World.notify: ("syncs", 2.0)}
CASES = [
    *((work, {(queue, 0.0) for queue in queues}) for work, queues in NOW_DUE.items()),
    *((work, {wake_up}) for work, wake_up in DUE_LATER.items()),
]


@pytest.fixture
async def world(settings, sessions, project):
    world = World(settings, sessions, project)
    await world.prepare()
    return world


@pytest.mark.parametrize(("work", "expected"), CASES, ids=[work.__name__ for work, _ in CASES])
async def test_due_work_wakes_its_queue_after_the_commit_and_not_after_a_rollback(
    world, engine, work, expected
):
    wakeups = RecordedWakeUps()
    sessions = create_sessions(engine, after_commit=wakeups.send_requested)

    async def fail() -> None:
        async with transaction(sessions) as session:
            await work(world, session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await wakeups.flush()
    assert wakeups.sent == []

    async with transaction(sessions) as session:
        await work(world, session)
        await asyncio.sleep(0)
        assert wakeups.sent == []  # the workers would not see the rows yet
    await wakeups.flush()
    assert len(wakeups.sent) == len(expected)
    assert set(wakeups.sent) == expected
    await wakeups.aclose()


async def test_a_failed_commit_wakes_no_worker(engine, sessions):
    wakeups = RecordedWakeUps()

    async def lose_connection() -> None:
        async with transaction(create_sessions(engine, after_commit=wakeups.send_requested)) as session:
            wake_after_commit(session, "syncs")
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            async with transaction(sessions) as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    with pytest.raises(DBAPIError):
        await lose_connection()
    await wakeups.flush()
    assert wakeups.sent == []
    await wakeups.aclose()


async def test_a_queue_is_woken_once_for_each_time(engine):
    wakeups = RecordedWakeUps()
    sessions = create_sessions(engine, after_commit=wakeups.send_requested)
    async with transaction(sessions) as session:
        for _ in range(3):
            wake_after_commit(session, "syncs")
            wake_after_commit(session, "syncs", after=2.0)
    await wakeups.flush()
    assert sorted(wakeups.sent) == [("syncs", 0.0), ("syncs", 2.0)]
    async with transaction(sessions):
        pass
    await wakeups.flush()
    assert len(wakeups.sent) == 2
    await wakeups.aclose()


async def test_the_api_and_redis(api, app, redis_url):
    body = {"bot_name": "Notetaker", "meeting_url": LINK}
    refused = await api.post("/api/v1/bots", json=body | {"calendar_event_id": new_id("evt")})
    assert refused.status_code >= 400
    await app.state.calbridge.wakeups.flush()
    async with Redis.from_url(redis_url) as redis:
        assert not await redis.exists("arq:job:wake:bots")
        assert (await api.post("/api/v1/bots", json=body)).status_code == 201
        await app.state.calbridge.wakeups.flush()
        assert await redis.exists("arq:job:wake:bots")


async def test_a_response_does_not_wait_for_a_redis_that_is_silent(settings):
    """Redis accepts connections and never responds."""
    held = []

    async def accept(reader, writer):
        held.append(writer)
        await reader.read()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    wakeups = WakeUps(connect_redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    engine = create_engine(settings.required_database_url())
    sessions = create_sessions(engine, after_commit=wakeups.send_requested)
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with transaction(sessions) as session:
        wake_after_commit(session, "syncs")
    committed_in = loop.time() - started
    await wakeups.flush()
    assert held
    assert loop.time() - started >= committed_in + 0.3
    assert loop.time() - started < 3
    await wakeups.aclose()
    await engine.dispose()
    for writer in held:
        writer.close()
    server.close()
