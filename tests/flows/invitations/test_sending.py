"""Mails from the outbox: who gets which, from which address, and what they contain."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.core import metrics
from app.core.db import transaction
from app.core.errors import InvalidFields
from app.invitations.retention import prune_mail_contents
from app.invitations.service import RsvpLinks, Sender
from app.itip.event import Person
from app.models import InvitationMail
from tests.conftest import StartWorker
from tests.fakes.messages import Submitted
from tests.flows.invitations.outbox import BOB, EVE, EVENT, OWNER, vevent


async def test_each_guest_gets_a_mail_of_their_own_from_the_mailbox(outbox):
    assert await outbox.queue(recipients=(BOB, EVE)) == 2
    await outbox.process()
    bob, eve = sorted(outbox.fake.submitted, key=lambda mail: mail.recipients)
    assert (bob.recipients, eve.recipients) == ([BOB.email], [EVE.email])
    assert bob.mailbox_id == outbox.mailbox.id
    assert bob.mail["From"].addresses[0].addr_spec == OWNER
    assert bob.mail["Subject"] == "Invitation: Weekly"
    assert eve.mail["Subject"] == "Invitation : Weekly"
    assert "10:00 – 11:00 (Europe/Paris, CET)" in bob.part("text/plain")
    assert "Agenda & more" in bob.part("text/plain")
    assert "Agenda &amp; more" in bob.part("text/html")
    method, event = vevent(bob)
    assert (method, event["ORGANIZER"], event["SEQUENCE"]) == ("REQUEST", f"mailto:{OWNER}", 0)
    assert {row.status for row in await outbox.rows()} == {"sent"}
    assert all(row.mail is None and row.next_attempt_at is None for row in await outbox.rows())


async def test_a_worker_sends_what_is_queued(outbox, start_worker: StartWorker):
    await start_worker(outbox.settings)
    await outbox.queue()
    (mail,) = await outbox.fake.wait_for(1)
    assert mail.recipients == [BOB.email]


async def test_a_mail_of_an_older_release_that_names_another_address_is_never_sent(outbox):
    await outbox.queue(recipients=(BOB, EVE))
    async with transaction(outbox.sessions) as session:
        row = (
            await session.scalars(select(InvitationMail).where(InvitationMail.recipient_email == BOB.email))
        ).one()
        row.mail = (row.mail or b"").replace(
            b"To: Bob <", b"To: victim@evil.example, Bob Builder of the Department\r\n and Titles <"
        )
    before = metrics.INVITATION_MAILS_UNSAFE._value.get()
    await outbox.process()
    assert [mail.recipients for mail in outbox.fake.submitted] == [[EVE.email]]
    bob, _ = await outbox.rows()
    assert (bob.status, bob.open_submits) == ("failed", 0)
    assert "To header can be read as another address than bob@example.org" in bob.last_error
    assert metrics.INVITATION_MAILS_UNSAFE._value.get() == before + 1


async def test_a_mail_to_an_address_that_messages_drops_fails_with_the_reason(outbox):
    """Guests of older releases: their events can still be changed."""
    await outbox.queue(recipients=(replace(BOB, email="bob@example.c1"),))
    await outbox.process()
    row = await outbox.row()
    assert (row.status, outbox.fake.submitted) == ("failed", [])
    assert "bob@example.c1" in row.last_error


@pytest.mark.parametrize(
    "name",
    [
        "victim@evil.example, Bob Builder of the Department of Long Winded Names and Titles",
        "Group: victim@evil.example;",
    ],
)
async def test_a_name_adds_no_recipient_and_stops_no_mail(outbox, name):
    await outbox.queue(
        recipients=(replace(BOB, name=name),), sender=replace(outbox.identity, name=f"Sales: {name}")
    )
    await outbox.process()
    (mail,) = outbox.fake.submitted
    assert mail.recipients == [BOB.email]


async def test_contents_of_failed_mails_are_kept_for_a_time(outbox):
    outbox.mailbox.users.clear()
    await outbox.queue()
    await outbox.process()
    outbox.forget_mailboxes()
    outbox.mailbox.users[OWNER] = "sender"
    await outbox.queue(recipients=(EVE,))
    await outbox.process()
    for days, kept in ((1, [True, False]), (0, [False, False])):
        await prune_mail_contents(outbox.sessions, older_than=timedelta(days=days))
        assert [row.mail is not None for row in await outbox.rows()] == kept
    assert [row.status for row in await outbox.rows()] == ["failed", "sent"]


async def test_uninviting_one_guest_does_not_call_the_event_off(outbox):
    await outbox.queue(replace(EVENT, sequence=1, guests=(EVE,)), "CANCEL", (BOB,))
    await outbox.process()
    method, event = vevent(outbox.fake.submitted[0])
    assert method == "CANCEL"
    assert "STATUS" not in event
    assert str(event["ATTENDEE"]) == f"mailto:{BOB.email}"
    assert "no longer invited" in outbox.fake.submitted[0].part("text/plain")


async def test_calling_off_the_event_cancels_it_for_all(outbox):
    await outbox.queue(replace(EVENT, sequence=1), "CANCEL", (BOB, EVE))
    await outbox.process()
    assert all(vevent(mail)[1]["STATUS"] == "CANCELLED" for mail in outbox.fake.submitted)


async def test_a_reply_shows_the_organizer_who_replied_what(outbox):
    reply = replace(BOB, response_status="tentative")
    await outbox.queue(method="REPLY", recipients=(Person(email=OWNER, name="Ada"),), replying=reply)
    await outbox.process()
    (mail,) = outbox.fake.submitted
    method, event = vevent(mail)
    assert method == "REPLY"
    assert str(event["ATTENDEE"]) == "mailto:bob@example.org"
    assert event["ATTENDEE"].params["PARTSTAT"] == "TENTATIVE"
    assert mail.mail["Subject"] == "Tentatively accepted: Weekly (Bob)"
    assert "Bob has answered: maybe." in mail.part("text/plain")


async def test_rsvp_links_are_in_both_texts(outbox):
    links = RsvpLinks(
        *(
            f"https://cal.example/rsvp/?token=t&action={word}"
            for word in ("accepted", "tentative", "declined")
        )
    )
    await outbox.queue(rsvp_links={BOB.email: links})
    await outbox.process()
    (mail,) = outbox.fake.submitted
    assert "https://cal.example/rsvp/?token=t&action=declined" in mail.part("text/plain")
    assert "https://cal.example/rsvp/?token=t&amp;action=declined" in mail.part("text/html")


@pytest.mark.parametrize("role", ["viewer", "editor", None])
async def test_an_owner_who_may_not_send_any_more_sends_nothing(outbox, api, role):
    await outbox.queue()
    outbox.mailbox.users.clear()
    if role:
        outbox.mailbox.users[OWNER] = role
    await outbox.process()
    assert outbox.fake.submitted == []
    listed = (await api.get(f"/api/v1/calendar_events/{outbox.event_id}/invitations")).json()["results"]
    assert [mail["status"] for mail in listed] == ["failed"]
    assert "may not send from the mailbox ada@example.com any more" in listed[0]["last_error"]


async def test_a_mailbox_with_another_address_sends_nothing(outbox):
    await outbox.queue()
    outbox.mailbox.email = "ada.lovelace@example.com"
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("failed", 0)
    assert "address is not ada@example.com any more" in row.last_error
    assert outbox.fake.refused == []


async def test_a_large_event_lists_each_guest_alone(outbox):
    guests = tuple(replace(BOB, email=f"guest{number}@example.org") for number in range(101))
    await outbox.queue(replace(EVENT, guests=guests), recipients=guests[:2])
    await outbox.queue(replace(EVENT, guests=guests, sequence=1), "CANCEL", guests)
    mails = [Submitted("", [row.recipient_email], row.mail or b"", "") for row in await outbox.rows()]
    assert len(mails) == 103
    _, invited = vevent(mails[1])
    assert [str(address) for address in invited["ATTENDEE"]] == [
        f"mailto:{OWNER}",
        "mailto:guest1@example.org",
    ]
    assert "guest2@" not in mails[1].part("text/html")
    method, cancelled = vevent(mails[7])
    assert (method, cancelled["STATUS"]) == ("CANCEL", "CANCELLED")
    assert f"mailto:{mails[7].recipients[0]}" == str(cancelled["ATTENDEE"])


async def test_an_address_that_comes_twice_gets_one_mail(outbox):
    assert await outbox.queue(recipients=(BOB, replace(BOB, email="BOB@Example.org"))) == 1


@pytest.mark.parametrize(
    "address", ["bob", "bob@", "a@b\r\nBcc: c@d", "a b@c.d", "a,b@c.d", "x" * 65 + "@b.c", "bób@x.y"]
)
async def test_nothing_is_queued_for_a_bad_address(outbox, address):
    with pytest.raises(InvalidFields):
        await outbox.queue(recipients=(BOB, replace(BOB, email=address)))
    assert await outbox.rows() == []


async def test_nothing_is_queued_from_a_bad_address(outbox):
    with pytest.raises(InvalidFields):
        await outbox.queue(
            sender=Sender(mailbox_id="x", email="büro@example.com", name=None, owner_email=OWNER)
        )
    assert await outbox.rows() == []


async def test_the_mails_of_an_event_are_listed(outbox, api, other_api):
    await outbox.queue(recipients=(BOB, EVE))
    await outbox.process()
    response = await api.get(f"/api/v1/calendar_events/{outbox.event_id}/invitations")
    assert response.status_code == 200
    body = response.json()
    assert (body["next"], body["previous"], len(body["results"])) == (None, None, 2)
    mail = body["results"][0]
    assert mail["recipient"] == {"email": EVE.email, "name": "Eve"}
    assert mail["sender"] == {"mailbox_id": outbox.mailbox.id, "email": OWNER, "name": "Ada"}
    assert (mail["method"], mail["status"], mail["attempt_count"], mail["last_error"]) == (
        "REQUEST",
        "sent",
        1,
        None,
    )
    path = f"/api/v1/calendar_events/{outbox.event_id}/invitations"
    assert (await other_api.get(path)).status_code == 404
    assert (await api.get("/api/v1/calendar_events/evt_aaaaaaaaaaaaaaaa/invitations")).status_code == 404
    assert (await api.get("/api/v1/calendar_events/nonsense/invitations")).status_code == 404
    assert (await api.get(path, params={"cursor": "x"})).status_code == 400
    assert (await api.get(path, params={"nonsense": "x"})).status_code == 400
