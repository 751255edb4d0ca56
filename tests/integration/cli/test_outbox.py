"""`calbridge outbox`: deliveries, mails and bot hand-overs that wait or failed."""

import asyncio
from datetime import timedelta
from typing import Any

from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from app.models import Bot, InvitationMail, WebhookDelivery, WebhookSubscription
from tests import factories
from tests.commands import calbridge, one_json_line

NOW = utcnow()
FINISHED = {"status": "failed", "next_attempt_at": None}


def at(minutes: float):
    return NOW + timedelta(minutes=minutes)


async def outbox(settings, *arguments: str):
    return await asyncio.to_thread(
        calbridge, "outbox", *arguments, DATABASE_URL=settings.required_database_url()
    )


async def add_deliveries(sessions, project, name: str, rows: list[dict[str, Any]], **fields: Any) -> None:
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=f"webhook_{name}",
                project_id=project.id,
                url=f"https://user:hunter2@{name}.example:8443/hooks/hunter3?key=hunter4",
                triggers=[],
                secrets_sealed=b"",
                **fields,
            )
        )
        await session.flush()
        for number, row in enumerate(rows):
            values = {"next_attempt_at": at(60), "created_at": at(-60), **row}
            session.add(
                WebhookDelivery(
                    id=f"dlv_{name}_{number}",
                    subscription_id=f"webhook_{name}",
                    trigger="x",
                    idempotency_key="x",
                    body=b"",
                    **values,
                )
            )


async def add_mails(sessions, project, calendar_id: str, rows: list[dict[str, Any]]) -> None:
    async with transaction(sessions) as session:
        for number, row in enumerate(rows):
            values = {"next_attempt_at": at(60), "mail": b"x", "created_at": at(-30), **row}
            session.add(
                InvitationMail(
                    id=f"msg_{number}",
                    project_id=project.id,
                    calendar_id=calendar_id,
                    event_uid="u",
                    method="REQUEST",
                    sequence=0,
                    recipient_key=str(number),
                    recipient_email="guest@example.com",
                    sender_email="a",
                    owner_email="a",
                    message_id=f"<{number}>",
                    **values,
                )
            )


async def add_bots(sessions, project, rows: list[dict[str, Any]]) -> None:
    async with transaction(sessions) as session:
        for number, row in enumerate(rows):
            values = {"meeting_url": "https://meet.example.org/x", "join_at": at(0), **row}
            session.add(Bot(id=f"bot_{number}", project_id=project.id, bot_name="x", **values))


async def test_an_empty_outbox(settings, project):
    found = one_json_line(await outbox(settings, "--json"))
    nothing = {
        "pending": 0,
        "in_flight": 0,
        "failed": 0,
        "failed_last_day": 0,
        "oldest_at": None,
        "next_attempt_at": None,
    }
    assert found == {
        "deliveries": {**nothing, "on_hold": 0, "endpoints": []},
        "mails": {**nothing, "unknown": 0, "last_error": None},
        "bots": {**nothing, "scheduled": 0},
    }
    text = await outbox(settings)
    assert (text.returncode, text.stderr) == (0, "")
    assert [line.split()[0] for line in text.stdout.splitlines()] == ["outbox", "deliveries", "mails", "bots"]


async def test_deliveries_by_endpoint_without_the_secrets_of_their_urls(
    sessions, settings, project, other_project
):
    failed_attempt = {"error": "timeout: no response within 2 s", "status_code": None}
    await add_deliveries(
        sessions,
        project,
        "busy",
        [
            {"next_attempt_at": at(-5), "created_at": at(-90)},
            {"next_attempt_at": at(900), "lease_token": "x"},  # a worker has it
            {"next_attempt_at": at(-1), "lease_token": "x"},  # the worker died
            {"next_attempt_at": at(30), "attempts": [{"error": "older"}, failed_attempt]},
            {**FINISHED, "finished_at": at(-60), "attempts": [{"error": "oldest"}], "created_at": at(-200)},
            {**FINISHED, "finished_at": at(-60 * 48)},
            {**FINISHED, "finished_at": at(-60), "merged_into": "dlv_busy_0"},
            {"status": "success", "next_attempt_at": None, "finished_at": at(-1)},
        ],
        failing_since=at(-80),
    )
    await add_deliveries(sessions, project, "paused", [{"next_attempt_at": at(-9)}], paused_until=at(20))
    await add_deliveries(sessions, project, "off", [{}, {"created_at": at(-900)}], is_active=False)
    await add_deliveries(sessions, other_project, "other", [{}] * 3)

    done = await outbox(settings, "--project", project.id, "--json")
    deliveries = one_json_line(done)["deliveries"]
    endpoints = deliveries.pop("endpoints")
    assert deliveries == {
        "pending": 5,
        "in_flight": 1,
        "failed": 2,
        "failed_last_day": 1,
        "oldest_at": isoformat(at(-90)),
        "next_attempt_at": isoformat(at(-5)),
        "on_hold": 2,
    }
    assert [one["webhook_id"] for one in endpoints] == ["webhook_busy", "webhook_off", "webhook_paused"]
    assert endpoints[0] == {
        "webhook_id": "webhook_busy",
        "project_id": project.id,
        "origin": "https://busy.example:8443",
        "is_active": True,
        "pending": 4,
        "failed_last_day": 1,
        "failing_since": isoformat(at(-80)),
        "oldest_at": isoformat(at(-90)),
        "next_attempt_at": isoformat(at(-5)),
        "last_error": "timeout: no response within 2 s",
    }
    assert (endpoints[1]["is_active"], endpoints[1]["next_attempt_at"]) == (False, None)
    assert endpoints[2]["next_attempt_at"] == isoformat(at(20))

    text = await outbox(settings)
    assert "2 deliveries wait for endpoints that are disabled." in text.stdout
    assert "last error: timeout: no response within 2 s" in text.stdout
    assert "disabled: PATCH is_active true sends what is pending" in text.stdout
    everything = one_json_line(await outbox(settings, "--json"))["deliveries"]
    assert everything["pending"] == 8
    assert "webhook_other" in [one["webhook_id"] for one in everything["endpoints"]]
    assert "hunter" not in done.stdout + text.stdout


async def test_mails(sessions, settings, project, other_project):
    calendar_id = await factories.add_calendar(sessions, settings, project.id, secrets={})
    await add_mails(
        sessions,
        project,
        calendar_id,
        [
            {"next_attempt_at": at(10), "last_error": "older", "updated_at": at(-9), "created_at": at(-70)},
            {"next_attempt_at": at(900), "lease_token": "x"},
            {"last_error": "421 try later", "updated_at": at(-1)},
            {**FINISHED, "finished_at": at(-60)},
            {**FINISHED, "finished_at": at(-60 * 30)},
            {"status": "unknown", "next_attempt_at": None, "finished_at": at(-60)},
            {"status": "sent", "next_attempt_at": None, "finished_at": at(-60)},
        ],
    )
    mails = one_json_line(await outbox(settings, "--json"))["mails"]
    assert mails == {
        "pending": 3,
        "in_flight": 1,
        "failed": 2,
        "failed_last_day": 1,
        "oldest_at": isoformat(at(-70)),
        "next_attempt_at": isoformat(at(10)),
        "unknown": 1,
        "last_error": "421 try later",
    }
    text = (await outbox(settings)).stdout
    assert "1 mails ended as unknown" in text
    assert "The last error of a mail: 421 try later" in text
    others = one_json_line(await outbox(settings, "--project", other_project.id, "--json"))["mails"]
    assert (others["pending"], others["failed"], others["last_error"]) == (0, 0, None)


async def test_bots(sessions, settings, project, other_project):
    await add_bots(
        sessions,
        project,
        [
            {"join_at": at(2), "created_at": at(-70)},  # due since 3 minutes: the lead is 5
            {"join_at": at(900)},
            {"join_at": at(1), "meeting_url": None},
            {"state": "launching", "next_attempt_at": at(900), "lease_token": "x"},
            {"state": "launching", "next_attempt_at": at(60)},
            {"state": "launching", "next_attempt_at": None},  # without a runner
            {"state": "fatal_error", "updated_at": at(-60)},
            {"state": "fatal_error", "updated_at": at(-60 * 48)},
            {"state": "launched"},
        ],
    )
    assert one_json_line(await outbox(settings, "--json"))["bots"] == {
        "pending": 3,
        "in_flight": 1,
        "failed": 2,
        "failed_last_day": 1,
        "oldest_at": isoformat(at(-70)),
        "next_attempt_at": isoformat(at(-3)),
        "scheduled": 2,
    }
    assert "2 bots are scheduled for later." in (await outbox(settings)).stdout
    others = one_json_line(await outbox(settings, "--project", other_project.id, "--json"))["bots"]
    assert (others["pending"], others["scheduled"]) == (0, 0)


async def test_an_unknown_project_is_a_sentence_and_1(settings):
    done = await outbox(settings, "--project", "proj_x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "There is no project proj_x. `calbridge project list` shows them all.\n"
