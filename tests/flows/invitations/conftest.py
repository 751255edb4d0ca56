"""The outbox of a calendar whose mails go out by a fake Messages."""

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from app.core.db import Sessions, transaction
from app.core.http import operator_client
from app.core.ids import new_id
from app.hosted.service import schedule_rewrite
from app.invitations.sender import MailSender
from app.invitations.service import Sender
from app.mail.lasuite.mailboxes import Messages
from app.models import Calendar, CalendarEvent
from app.settings import Settings
from tests.conftest import TestProject
from tests.fakes.messages import FakeMessages
from tests.fakes.smtp import Sink, smtp_sink
from tests.flows.invitations.outbox import EVENT, OWNER, Outbox


@pytest.fixture
async def outbox(
    settings: Settings, sessions: Sessions, project: TestProject, fake_messages: FakeMessages
) -> AsyncIterator[Outbox]:
    mailbox = fake_messages.add_mailbox(OWNER, name="Ada", admin=OWNER)
    calendar_id, event_id = new_id("cal"), new_id("evt")
    async with transaction(sessions) as session:
        session.add(Calendar(id=calendar_id, project_id=project.id, platform="local", owner_email=OWNER))
        await session.flush()
        session.add(
            CalendarEvent(
                id=event_id,
                project_id=project.id,
                calendar_id=calendar_id,
                platform_uuid=EVENT.uid,
                ical_uid=EVENT.uid,
                content_hash=b"",
            )
        )
    async with operator_client() as client:
        messages = Messages(settings, client)
        sender = MailSender(
            settings=settings,
            sessions=sessions,
            messages=messages,
            refresh_event=schedule_rewrite,
            retry_waits=(5, 30),
        )
        yield Outbox(
            fake_messages, mailbox, settings, sessions, sender, messages, project.id, calendar_id, event_id
        )


@pytest.fixture
async def smtp(outbox: Outbox) -> AsyncIterator[Sink]:
    async with smtp_sink() as sink:
        outbox.settings.smtp_url = SecretStr(f"smtp://127.0.0.1:{sink.port}")
        outbox.settings.email_from = "Calendars <calendars@example.net>"
        outbox.identity = Sender(
            mailbox_id=None, email="calendars@example.net", name="Ada", owner_email=OWNER
        )
        yield sink
