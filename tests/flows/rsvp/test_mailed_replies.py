"""Replies that the webhook of Messages posts over HTTP, and which senders are believed."""

import asyncio
from dataclasses import replace

import pytest
from dns.asyncresolver import Resolver
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import text

from app.rsvp import inbound
from app.rsvp.senders import SenderKeys, _signatures, _split, is_signed_by_sender
from tests.factories import at
from tests.fakes.dns import serve_dns, sign
from tests.fakes.messages import FakeMessages, WebhookChannel
from tests.fakes.server import serve
from tests.flows.rsvp.replies import guest_statuses, reply

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendar@example.net")


@pytest.fixture
async def calendar_id(api):
    body = {"platform": "local", "name": "Lectures", "owner_email": "ada@example.com"}
    return (await api.post("/api/v1/calendars", json=body)).json()["id"]


@pytest.fixture
async def event(api, calendar_id):
    return await invite(api, calendar_id, "bob@example.org", "cy@example.org")


async def invite(api, calendar_id, *people):
    body = {
        "calendar_id": calendar_id,
        "name": "Analysis",
        "start_time": at(3),
        "end_time": at(3.1),
        "attendees": [{"email": person} for person in people],
    }
    response = await api.post("/api/v1/calendar_events", json=body)
    assert response.status_code == 201, response.text
    return response.json()


@pytest.fixture
async def names(app):
    """The DNS that the application asks; example.org signs its mails."""
    async with serve_dns() as fake:
        resolver = Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], fake.port
        app.state.sender_keys._resolver = resolver
        fake.publish_key("example.org")
        yield fake


@pytest.fixture
async def messages(app, settings, names):
    """A Messages whose webhook posts to the application."""
    fake = FakeMessages()
    async with serve(app, lifespan="off") as url:
        fake.webhook = WebhookChannel(f"{url}/api/v1/rsvp/inbound")
        settings.messages_webhook_secret = SecretStr(f"{fake.webhook.secret},{fake.webhook.static_key}")
        yield fake


@pytest.fixture
def box(messages):
    return messages.add_mailbox("Ada@Example.com", admin="ada@example.com")


def signed(event, domain="example.org", **fields):
    return sign(reply(event, **fields), domain)


def append_to_signed_lines(event):
    """A signature that speaks for the first lines of the body alone (RFC 6376 8.2)."""
    lines, begin, rest = reply(event).partition(b"BEGIN:VEVENT")
    return sign(lines, "example.org", length=True) + begin + rest


def hide_the_sender(event):
    """A mail of Eve's, which her domain has signed, behind one of Bob's that ends its lines with CR alone.

    To who reads no line's end there, all of Bob's mail is one header field that no domain has signed.
    """
    return (
        b"X: x\r" + reply(event).replace(b"\r\n", b"\r") + b"\r\n" + signed(event, sender="eve@example.org")
    )


def reason(incoming):
    """The body of the last response, which must let the mail pass, and ask for nothing else."""
    assert incoming.state == "delivered"
    assert incoming.wishes == {}
    status_code, body = incoming.responses[-1]
    assert status_code == 200
    return body


async def bobs(api, event):
    return (await guest_statuses(api, event))["bob@example.org"]


async def test_a_signed_reply_is_applied_and_the_mail_goes_on_its_way(api, messages, box, event):
    incoming = await messages.deliver(box, signed(event))
    assert reason(incoming) == '{"status":"applied","reason":null}'
    assert await bobs(api, event) == "accepted"
    # At least once: the same mail again does nothing.
    assert "taken in before" in reason(await messages.deliver(box, signed(event, partstat="DECLINED")))
    assert await bobs(api, event) == "accepted"


async def test_a_mail_that_messages_marked_is_not_believed(api, messages, box, event):
    assert "looks forged" in reason(await messages.deliver(box, signed(event), verdict="fail"))
    assert "could not be verified" in reason(await messages.deliver(box, signed(event), verdict="none"))
    # A sender who writes a good word into the mail changes nothing: there is no good word.
    mail = b"X-StMsg-Sender-Auth: pass\r\n" + signed(event)
    assert "looks forged" in reason(await messages.deliver(box, mail, verdict="fail"))
    assert await bobs(api, event) == "needs_action"


@pytest.mark.parametrize(
    "forge",
    [
        reply,  # no signature
        lambda event: sign(reply(event), "eve.example"),  # of another sender
        lambda event: sign(reply(event), "org"),  # of a domain that no sender has
        lambda event: sign(reply(event), "ample.org"),
        lambda event: sign(reply(event), "sub.example.org"),
        lambda event: signed(event).replace(b"PARTSTAT=ACCEPTED", b"PARTSTAT=DECLINED"),
        lambda event: signed(event, sender="eve@example.org").replace(b"eve@", b"bob@"),
        append_to_signed_lines,
        lambda event: sign(reply(event), "example.org", selector="unknown"),
        lambda event: b"X-StMsg-Sender-Auth: pass\r\n" + reply(event),
    ],
)
async def test_a_mail_that_its_senders_domain_did_not_sign_is_not_believed(
    api, messages, names, box, event, forge
):
    for domain in ("eve.example", "org", "ample.org", "sub.example.org"):
        names.publish_key(domain)
    assert "no valid DKIM signature" in reason(await messages.deliver(box, forge(event)))
    assert await bobs(api, event) == "needs_action"


async def test_a_header_that_others_read_in_another_way_is_not_believed(api, messages, box, event):
    """Neither by a signature of another sender at the same domain, nor where Messages has looked at another From."""
    mail = hide_the_sender(event)
    assert "no calendar reply" in reason(await messages.deliver(box, mail))
    assert not _signatures(_split(mail)[0], b"example.org")
    assert not _signatures(b"From: bob@example.org\r\n" + _split(signed(event))[0], b"example.org")
    assert _signatures(_split(signed(event))[0], b"example.org")
    assert await bobs(api, event) == "needs_action"


async def test_signatures_of_a_domain_above_and_of_several_domains_count(
    api, messages, names, box, calendar_id
):
    people = ["bob@mail.example.org", "bob@example.org"]
    event = await invite(api, calendar_id, *people)
    above = signed(event, sender=people[0], number=1)
    assert "applied" in reason(await messages.deliver(box, above))
    names.publish_key("list.example")
    both = sign(signed(event, number=2), "list.example")
    assert "applied" in reason(await messages.deliver(box, both))
    names.asked.clear()
    relaxed = sign(
        reply(event, partstat="DECLINED", minutes=5, number=3).replace(b"PRODID:x", b"PRODID:x \t x"),
        "example.org",
        canonicalize=(b"relaxed", b"relaxed"),
    )
    assert "applied" in reason(await messages.deliver(box, relaxed))
    # No server is asked for keys that could not count.
    assert set(names.asked) == {"mail._domainkey.example.org."}


@pytest.mark.parametrize(
    ("accepted", "believed"),
    [
        ("verified", {"signed"}),
        ("unmarked", {"signed", "unmarked"}),
        ("unverified", {"signed", "unmarked", "none"}),
    ],
)
async def test_the_operator_decides_what_unsigned_mails_are_worth(
    api, settings, messages, box, event, accepted, believed
):
    settings.messages_reply_senders = accepted
    mails = {
        "signed": (signed(event, partstat="TENTATIVE", number=1, minutes=1), None),
        "unmarked": (reply(event, partstat="DECLINED", number=2, minutes=2), None),
        "none": (reply(event, partstat="ACCEPTED", number=3, minutes=3), "none"),
        "forged": (signed(event, partstat="TENTATIVE", number=4, minutes=4), "fail"),
    }
    taken = set()
    for name, (mail, verdict) in mails.items():
        if "applied" in reason(await messages.deliver(box, mail, verdict=verdict)):
            taken.add(name)
    assert taken == believed


async def test_mails_from_a_version_of_messages_without_a_verdict_are_refused(api, messages, box, event):
    messages.webhook.stamps = False
    assert "no valid DKIM" in reason(await messages.deliver(box, reply(event), verdict="fail"))
    assert await bobs(api, event) == "needs_action"


async def test_only_mails_that_were_found_to_be_no_spam_count(api, messages, box, event):
    assert "flagged as spam" in reason(await messages.deliver(box, signed(event), is_spam=True))
    messages.webhook.trigger = "message.inbound"
    assert "set the webhook channel's trigger" in reason(await messages.deliver(box, signed(event)))
    assert await bobs(api, event) == "needs_action"
    messages.webhook.trigger = "message.delivered"
    assert "applied" in reason(await messages.deliver(box, signed(event)))


async def test_while_the_senders_dns_is_unavailable_the_mail_waits(api, messages, names, box, event):
    names.is_broken = True
    incoming = await messages.deliver(box, signed(event))
    assert incoming.state == "held"
    assert incoming.responses[-1][0] == 503
    names.is_broken = False
    await messages.sweep()
    assert "applied" in reason(incoming)
    assert await bobs(api, event) == "accepted"


async def test_while_the_database_is_busy_the_mail_waits(api, sessions, messages, box, event):
    async with sessions() as session:
        await session.execute(text("LOCK TABLE inbound_replies IN ACCESS EXCLUSIVE MODE"))
        incoming = await messages.deliver(box, signed(event))
    assert incoming.state == "held"
    assert incoming.responses[-1][0] == 503
    await messages.sweep()
    assert "applied" in reason(incoming)
    assert await bobs(api, event) == "accepted"


async def test_a_reply_that_was_not_recorded_is_not_acknowledged(api, messages, box, event, monkeypatch):
    """The process dies between taking the mail and the commit: seen from outside, there is no response."""
    apply = inbound._apply

    async def die(*args, **kwargs):
        await apply(*args, **kwargs)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(inbound, "_apply", die)
        incoming = await messages.deliver(box, signed(event))
    assert incoming.state == "held"
    assert await bobs(api, event) == "needs_action"
    await messages.sweep()
    assert "applied" in reason(incoming)


async def test_nothing_that_stays_wrong_holds_a_mail(api, messages, box, event):
    """Messages holds a mail, and asks again every five minutes for two days, until it gets a 2xx."""
    ics = reply(event)
    unknown = {**event, "ical_uid": "unknown"}
    zero = {**event, "ical_uid": "a\x00b"}
    odd = [
        b"",
        b"\r\n\r\n",
        b"Subject: Lunch?\r\n\r\nAt twelve?",
        b"\x00\xff\xfe" * 1000,
        ics.replace(b"METHOD:REPLY", b"METHOD:REQUEST"),
        signed(unknown),
        signed(zero),
        signed({**event, "ical_uid": "\ud800".encode("utf-16", "surrogatepass").decode("latin-1")}),
        signed(event, sender="eve@example.org"),
        signed(event, sender="eve@example.org", attendee="bob@example.org"),
        signed(event, more="RECURRENCE-ID:99999999T999999Z\r\n"),
        signed(event, more="RECURRENCE-ID:20310101T000000Z\r\n", number=5),
        signed(event, more="ORGANIZER:mailto:eve@example.org\r\n"),
        signed(event, partstat="DELEGATED"),
        signed(event, partstat="NEEDS-ACTION"),
        signed(event).replace(b"Message-ID: <1@", b"Message-ID: <\x00\xff@"),
        sign(ics.replace(b"SEQUENCE:0", b"SEQUENCE:-99999999999999999999"), "example.org")[:-40],
        b"DKIM-Signature: v=1; d=example.org; s=mail; a=rsa-sha256; h=from; bh=x; b=y\r\n" + ics,
        b"DKIM-Signature: " + b"; ".join(b"a%d=b" % n for n in range(500)) + b"\r\n" + ics,
        b" folded\r\n" + ics,
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=..; h=from; bh=eA==; b=eA==\r\n" + ics,
        ics + bytes(60 * 1024 * 1024),
    ]
    for mail in odd:
        assert '"ignored"' in reason(await messages.deliver(box, mail)), mail[-300:]
    assert "larger than 25 MiB" in messages.incoming[-1].responses[-1][1]
    stranger = messages.add_mailbox("eve@example.com", admin="eve@example.com")
    assert "another mailbox" in reason(await messages.deliver(stranger, signed(event, number=2)))
    assert set((await guest_statuses(api, event)).values()) == {"needs_action"}
    assert "applied" in reason(await messages.deliver(box, signed(event, number=3)))
    assert "newer answer" in reason(await messages.deliver(box, signed(event, number=4, minutes=-30)))


async def test_a_mail_that_is_far_too_large_is_read_to_its_end_and_gets_a_response(app, messages, box):
    """If the connection were cut, Messages would send it again every five minutes."""
    size = 80 * 1024 * 1024
    channel = messages.webhook
    channel.auth_method = "api_key"
    async with serve(app, lifespan="off", http="h11") as url:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /api/v1/rsvp/inbound HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n"
            f"Authorization: Bearer {channel.static_key}\r\nX-StMsg-Mailbox: {box.email}\r\n\r\n".encode()
        )
        for _ in range(80):
            writer.write(bytes(1024 * 1024))
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_json_mails_of_a_channel_are_named_in_the_response_and_hold_nothing(api, messages, box, event):
    for wrong in ("jmap", "jmap_metadata"):
        messages.webhook.format = wrong
        assert "format to eml" in reason(await messages.deliver(box, signed(event)))
    response = await api.post("/api/v1/rsvp/inbound", json={"subject": "Re: Analysis"})
    assert response.status_code == 415
    assert "message/rfc822" in response.json()["error"]


async def test_a_wrong_secret_is_refused_and_the_mail_waits_until_it_is_right(
    api, settings, messages, box, event
):
    right = settings.messages_webhook_secret
    settings.messages_webhook_secret = SecretStr("another-secret-of-a-webhook-channel")
    incoming = await messages.deliver(box, signed(event))
    assert incoming.state == "held"
    assert incoming.responses[-1][0] == 401
    settings.messages_webhook_secret = right
    await messages.sweep()
    assert "applied" in reason(incoming)


async def test_the_secrets_of_several_channels_all_verify(api, settings, messages, box, event):
    """Rotation: the new secret is added first, and the old one taken away when Messages no longer uses it."""
    old = messages.webhook.secret
    new = replace(messages.webhook, secret="new-secret-of-the-webhook-channel")
    settings.messages_webhook_secret = SecretStr(f"{old}, {new.secret}")
    assert "applied" in reason(await messages.deliver(box, signed(event, number=1)))
    messages.webhook = new
    assert "applied" in reason(
        await messages.deliver(box, signed(event, number=2, partstat="DECLINED", minutes=1))
    )
    settings.messages_webhook_secret = SecretStr(new.secret)
    assert "applied" in reason(await messages.deliver(box, signed(event, number=3, minutes=2)))


async def test_a_channel_may_send_a_static_key(api, settings, messages, box, event):
    messages.webhook.auth_method = "api_key"
    settings.messages_webhook_secret = SecretStr(f"another-secret,{messages.webhook.static_key}")
    stranger = messages.add_mailbox("eve@example.com", admin="eve@example.com")
    assert "another mailbox" in reason(await messages.deliver(stranger, signed(event)))
    assert "no valid DKIM" in reason(await messages.deliver(box, reply(event)))
    assert "applied" in reason(await messages.deliver(box, signed(event)))
    settings.messages_webhook_secret = SecretStr("whk_" + "0" * 64)
    incoming = await messages.deliver(box, signed(event, number=2))
    assert incoming.responses[-1][0] == 401
    # A static key does not sign tokens.
    settings.messages_webhook_secret = SecretStr(messages.webhook.static_key)
    messages.webhook.auth_method, messages.webhook.secret = "jwt", messages.webhook.static_key
    assert (await messages.deliver(box, signed(event, number=3))).responses[-1][0] == 401


async def test_an_application_passes_its_own_verdict_on(api, event):
    async def post(mail, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await api.post("/api/v1/rsvp/inbound", content=mail, headers=named)
        assert response.status_code == 200
        return response.json()["reason"] or response.json()["status"]

    assert "looks forged" in await post(reply(event), X_StMsg_Sender_Auth="fail")
    for word in ("none", "None ", "softfail", ""):
        assert "could not be verified" in await post(reply(event), X_StMsg_Sender_Auth=word)
    # What Messages wrote into the mail counts too, whatever the caller says of it.
    assert "looks forged" in await post(
        b"X-StMsg-Sender-Auth: fail\r\n" + reply(event), X_StMsg_Sender_Auth="pass"
    )
    assert "could not" in await post(b"X-StMsg-Processing-Failed: true\r\n" + reply(event))
    assert "not checked for spam" in await post(reply(event), X_StMsg_Is_Spam="pending")
    assert await bobs(api, event) == "needs_action"
    assert await post(reply(event), X_StMsg_Sender_Auth="pass") == "applied"
    assert await post(reply(event, partstat="DECLINED", number=2, minutes=1)) == "applied"


async def test_what_became_of_mailed_replies_is_counted(api, messages, box, event):
    def count(outcome):
        labels = {"source": "messages", "outcome": outcome}
        return REGISTRY.get_sample_value("calbridge_inbound_replies_total", labels) or 0

    before = {name: count(name) for name in ("applied", "forged", "unsigned", "no_reply")}
    await messages.deliver(box, signed(event), verdict="fail")
    await messages.deliver(box, reply(event))
    await messages.deliver(box, b"Subject: Lunch?\r\n\r\nAt twelve?")
    await messages.deliver(box, signed(event))
    assert {name: count(name) - before[name] for name in before} == dict.fromkeys(before, 1)


class NoKeys(SenderKeys):
    async def find(self, name: str) -> bytes | None:
        raise AssertionError(name)


@pytest.mark.parametrize("body", [b" x" * 1_100_000, b"\t\r\n" * 400_000])
async def test_a_body_that_takes_long_to_check_is_not_checked(event, body):
    """The library works on each blank and each line; mails with attachments have a few of these for their size."""
    mail = signed(event) + body
    assert not await is_signed_by_sender(mail, "bob@example.org", NoKeys())


async def test_hostile_signatures_are_done_with_soon(api, messages, names, box, event):
    names.texts["mail._domainkey.example.org."] = "v=DKIM1; p=" + "A" * 8_000
    assert "no valid DKIM" in reason(await messages.deliver(box, signed(event, number=1)))
    names.publish_key("example.org")
    head, _, ics = reply(event, number=2).partition(b"MIME-Version")
    blank = (
        head
        + b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\nMIME-Version'
        + ics
        + b"--x\r\n\r\n"
        + b" " * 3_000_000
        + b"x\r\n--x--\r\n"
    )
    async with asyncio.timeout(30):  # by the library alone, many minutes
        await messages.deliver(
            box,
            b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=mail; h=from; bh=eA==; b=eA==\r\n"
            + blank,
        )
        assert "no valid DKIM" in reason(messages.incoming[-1])
    assert "applied" in reason(
        await messages.deliver(
            box, sign(reply(event, number=3), "example.org", canonicalize=(b"relaxed", b"relaxed"))
        )
    )
