"""Mails to a real SMTP server: refusals, outages, TLS and passwords."""

from dataclasses import replace

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.invitations.service import Sender
from app.mail import smtp as smtp_module
from tests.fakes.messages import Submitted
from tests.fakes.smtp import self_signed, smtp_sink
from tests.flows.invitations.outbox import BOB, EVE, EVENT, OWNER, vevent


async def test_without_a_mailbox_mails_go_out_by_smtp(outbox, smtp):
    await outbox.queue()
    await outbox.process()
    ((sender, recipients, raw),) = smtp.mails
    assert (sender, recipients) == ("calendars@example.net", [BOB.email])
    assert b"\r\nReply-To: ada@example.com\r\n" in raw
    assert b"From: Ada <calendars@example.net>\r\n" in raw
    _, event = vevent(Submitted("", recipients, raw, ""))
    assert event["ORGANIZER"] == f"mailto:{OWNER}"
    assert event["ORGANIZER"].params["SENT-BY"] == "mailto:calendars@example.net"
    unfolded = event.to_ical().replace(b"\r\n ", b"")
    assert b'SENT-BY="mailto:calendars@example.net"' in unfolded
    assert (await outbox.row()).status == "sent"
    assert outbox.fake.submitted == []


@pytest.mark.parametrize(
    ("rcpt", "data", "status"),
    [
        ("550 no such user", None, "failed"),
        ("450 later", None, "pending"),
        (None, "554 spam", "failed"),
        (None, "451 later", "pending"),
    ],
)
async def test_a_mail_servers_refusal_is_final_or_not(outbox, smtp, rcpt, data, status):
    smtp.rcpt_reply, smtp.data_reply = rcpt, data
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == (status, 0)
    assert (rcpt or data)[:3] in row.last_error


async def test_a_mail_server_that_cuts_the_line_after_the_mail_leaves_it_open(outbox, smtp):
    smtp.data_reply = "cut"
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 1)


async def test_an_unavailable_mail_server_is_tried_again(outbox, smtp):
    outbox.settings.smtp_url = SecretStr("smtp://127.0.0.1:1")
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)


async def test_a_mail_server_that_is_slow_before_the_mail_has_not_taken_it(outbox, smtp, monkeypatch):
    monkeypatch.setattr(smtp_module, "_TOTAL_TIMEOUT_SECONDS", 0.2)
    smtp.rcpt_seconds = 5
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)


async def test_a_mail_server_that_refuses_the_sender_is_the_operators_to_fix(outbox, smtp):
    smtp.mail_reply = "553 not your address"
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)
    assert "553" in row.last_error


async def test_a_password_is_read_from_the_address_and_a_refused_one_waits_for_the_operator(outbox, smtp):
    outbox.settings.smtp_url = SecretStr(f"smtp://calendars%40x:p%2Fw%25@127.0.0.1:{smtp.port}")
    await outbox.queue()
    smtp.password = "another"
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.last_error) == ("pending", "The mail server refuses our credentials (535).")
    smtp.password = "p/w%"
    await outbox.make_due()
    await outbox.process()
    assert (await outbox.row()).status == "sent"


@pytest.mark.parametrize("address", ["smtps://127.0.0.1:{port}", "smtp://127.0.0.1:{port}?starttls=true"])
async def test_nothing_goes_out_in_the_clear_where_tls_is_asked_for(outbox, smtp, address):
    outbox.settings.smtp_url = SecretStr(address.format(port=smtp.port))
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits, smtp.mails) == ("pending", 0, [])


@pytest.mark.parametrize(
    ("query", "encrypted"),
    [("", [True]), ("?starttls=false", [False]), ("?starttls=true", [])],
    ids=["offered", "never", "required"],
)
async def test_starttls_is_taken_where_it_is_offered(outbox, query, encrypted):
    """Its certificate is self-signed: accepted where TLS is offered, refused where it is required."""
    async with smtp_sink(self_signed()) as sink:
        user = "calendars%40x:p%2Fw%25"
        outbox.settings.smtp_url = SecretStr(f"smtp://{user}@127.0.0.1:{sink.port}{query}")
        outbox.settings.email_from = "calendars@example.net"
        await outbox.queue(
            sender=Sender(mailbox_id=None, email="calendars@example.net", name=None, owner_email=OWNER)
        )
        await outbox.process()
        assert sink.encrypted == encrypted
    assert (await outbox.row()).status == ("sent" if encrypted else "pending")


async def test_a_password_in_the_clear_is_warned_about(outbox, smtp):
    outbox.settings.smtp_url = SecretStr(f"smtp://calendars%40x:p%2Fw%25@127.0.0.1:{smtp.port}")
    smtp_module._warned.clear()
    await outbox.queue(recipients=(BOB, EVE))
    with capture_logs() as logs:
        await outbox.process()
    warnings = [entry for entry in logs if entry["event"] == "smtp_password_in_clear"]
    assert len(warnings) == 1  # not for each mail
    assert "p/w%" not in str(warnings)
    assert len(smtp.mails) == 2


async def test_a_mail_server_that_wants_no_more_of_a_sender_holds_that_sender_alone(outbox, smtp):
    smtp.mail_reply = "451 4.7.1 too many messages"
    await outbox.queue()
    await outbox.process()
    assert await outbox.process() == 0
    row = await outbox.row()
    assert (row.status, row.last_error) == ("pending", "The mail server refuses the mail (451).")
    smtp.mail_reply = None
    await outbox.queue(
        replace(EVENT, uid="another"), sender=replace(outbox.identity, owner_email="eve@example.com")
    )
    await outbox.process()
    assert [row.status for row in await outbox.rows()] == ["pending", "sent"]
    await outbox.end_holds()
    await outbox.process()
    assert [row.status for row in await outbox.rows()] == ["sent", "sent"]
