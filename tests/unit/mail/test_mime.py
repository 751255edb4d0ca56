"""Mails as bytes, read back by the standard library."""

import email
import email.policy
import re
from dataclasses import replace
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.addresses import is_address, is_mail_address
from app.core.languages import language_of
from app.itip.build import build_cancel, build_reply, build_request
from app.itip.clean import clean_line
from app.itip.event import Person
from app.mail.check import MailUnsafe, check_mail
from app.mail.mime import Mailing, compose, make_message_id
from app.mail.rendering import RsvpLinks, render
from app.mail.when import repeats_text, when_text
from tests.fakes.messages import read_addresses
from tests.unit.itip.test_build import BOB, EVENT, NASTY, STAMP

LINKS = RsvpLinks(
    *(
        f"https://cal.example/rsvp/?token={'t' * 300}&action={word}"
        for word in ("accepted", "tentative", "declined")
    )
)
MAILING = Mailing(
    sender_email="ada@example.com",
    sender_name="Ada Lovelace",
    recipient_email="bob@example.org",
    recipient_name="Bob",
    reply_to=None,
    message_id=make_message_id("ada@example.com", "uid", "bob@example.org", 0, "REQUEST"),
    thread_id=None,
    date=STAMP,
    method="REQUEST",
    ics=build_request(EVENT, stamp=STAMP),
    rendered=render(EVENT, kind="invitation", locale="en", links=LINKS),
)


def read(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def bodies(event: Any, **more: Any) -> tuple[str, str]:
    rendered = render(event, **{"kind": "invitation", "locale": "en", **more})
    return rendered.text, rendered.html


@pytest.mark.parametrize(
    ("method", "ics"),
    [
        ("REQUEST", build_request(EVENT, stamp=STAMP)),
        ("CANCEL", build_cancel(EVENT, stamp=STAMP, uninvited=[BOB], is_whole=False)),
        ("REPLY", build_reply(EVENT, stamp=STAMP, replying=BOB)),
    ],
)
def test_the_structure_is_what_outlook_and_gmail_want(method, ics):
    mail = read(compose(replace(MAILING, method=method, ics=ics)))
    assert mail.get_content_type() == "multipart/mixed"
    alternative, attachment = mail.iter_parts()
    assert alternative.get_content_type() == "multipart/alternative"
    parts = list(alternative.iter_parts())
    assert [part.get_content_type() for part in parts] == ["text/plain", "text/html", "text/calendar"]
    calendar = parts[-1]
    assert calendar["Content-Disposition"] is None
    assert {part.get_param("method") for part in (calendar, attachment)} == {method}
    assert calendar.get_content_charset() == "utf-8"
    assert attachment.get_filename() == "invite.ics"
    assert attachment.get_payload(decode=True) == calendar.get_payload(decode=True) == ics
    assert f"\r\nMETHOD:{method}\r\n".encode() in ics
    for part in mail.walk():
        assert len(part.get_all("Content-Type", [])) == 1


def test_the_headers_are_complete():
    mail = read(compose(replace(MAILING, thread_id="<first@example.com>", reply_to="owner@example.net")))
    assert mail["From"] == "Ada Lovelace <ada@example.com>"
    assert mail["To"] == "Bob <bob@example.org>"
    assert (mail["Cc"], mail["Bcc"]) == (None, None)
    assert mail["Reply-To"] == "owner@example.net"
    assert mail["Subject"] == "Invitation: Weekly"
    assert mail["Message-ID"] == MAILING.message_id
    assert mail["In-Reply-To"] == mail["References"] == "<first@example.com>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"].datetime == STAMP
    assert mail["Content-Language"] == "en"


def test_a_message_id_is_the_same_for_the_same_mail_and_short_for_any_domain():
    assert make_message_id("a@x.org", "uid", 1) == make_message_id("b@X.org", "uid", 1)
    assert make_message_id("a@x.org", "uid", 1) != make_message_id("a@x.org", "uid", 2)
    long = make_message_id("a@" + "label." * 30 + "example.org", "uid")
    mail = read(compose(replace(MAILING, message_id=long, thread_id=long)))
    assert mail["Message-ID"] == mail["References"] == long
    assert len(long) < 70


ASCII_NAMES = st.text(alphabet=[chr(code) for code in range(32, 127)], min_size=60, max_size=200)
WORDS = st.sampled_from(
    [
        "victim@evil.example,",
        "Lovelace, Ada",
        "Group: victim@evil.example;",
        "R&D;",
        '"quoted"',
        "(a comment",
        "back\\slash\\",
        "=?utf-8?q?victim=40evil=2Eexample=2C?=",
        "=?utf-8?b?dmljdGltQGV2aWwuZXhhbXBsZQ==?=",
        "<victim@evil.example>",
        "Zoë",
        "漢字漢字",
        "\U0001f469\u200d\U0001f4bb",
        "plain",
        "words",
    ]
)
MIXED_NAMES = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=400), MIXED_NAMES), st.one_of(st.text(max_size=200), ASCII_NAMES, MIXED_NAMES)
)
@example("x", "victim@evil.example, Bob Builder of the Department of Long Winded Names and Titles")
@example("x", "Group: victim@evil.example;")
def test_no_text_breaks_a_mail_or_adds_a_header_or_a_recipient(text, name):
    event = replace(
        EVENT,
        name=text,
        description=text,
        location=text,
        organizer=Person(email="ada@example.com", name=name),
    )
    raw = compose(
        replace(
            MAILING,
            sender_name=name,
            recipient_name=name,
            reply_to="owner@example.net",
            ics=build_request(event, stamp=STAMP),
            rendered=render(event, kind="invitation", locale="fr", links=LINKS),
        )
    )
    check_mail(raw, sender_email="ada@example.com", recipient_email="bob@example.org")
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert b"\r" not in raw.replace(b"\r\n", b"")
    header = raw.partition(b"\r\n\r\n")[0].decode("ascii")
    assert all(len(line) <= 78 and line.strip() for line in header.split("\r\n"))
    assert all(len(word) <= 75 for word in re.findall(r"=\?utf-8\?[qb]\?\S*\?=", header))
    mail = read(raw)
    expected = read(compose(replace(MAILING, reply_to="owner@example.net")))
    assert sorted(mail.keys()) == sorted(expected.keys())
    old = email.message_from_bytes(raw)
    shown = clean_line(name)[:120].rstrip()
    for header, address in (("From", "ada@example.com"), ("To", "bob@example.org")):
        (by_registry,) = mail[header].addresses
        assert by_registry.addr_spec == address
        # Three readers: two of the standard library, and one that sees groups everywhere.
        ((_, by_utils),) = getaddresses([old[header]])
        assert [by_utils] == read_addresses([old[header]]) == [address]
        decoded = str(make_header(decode_header(old[header].replace("\r\n", ""))))
        assert decoded == (f"{shown} <{address}>" if shown else address)
    assert mail["Subject"] == clean_line(f"Invitation : {clean_line(text) or '(sans titre)'}"[:200])


def test_an_encoded_word_holds_whole_characters():
    for name in ("é" * 120, "漢" * 120, "a" + "\U0001f469" * 60):
        header = compose(replace(MAILING, recipient_name=name)).partition(b"\r\nSubject")[0].decode()
        parts = [decode_header(word)[0] for word in re.findall(r"=\?utf-8\?[qb]\?\S*\?=", header)]
        assert "".join(text.decode(charset) for text, charset in parts) == name


@pytest.mark.parametrize("length", [60, 75, 76, 80, 120, 180])
@pytest.mark.parametrize("name", ["Bob, Eve <eve@evil.test>", "Bob; eve@evil.test", "Bob"])
def test_a_program_on_the_way_that_writes_the_header_anew_adds_no_address(name, length):
    """With a line over 78 characters, Python's does: python/cpython#80222."""
    rest = length - len("bob@") - len(".example")
    address = f"bob@{'.'.join('d' * min(60, rest - at) for at in range(0, rest, 61))}.example"
    assert is_mail_address(address)
    assert len(address) == length
    mail = compose(
        replace(
            MAILING,
            recipient_email=address,
            recipient_name=name,
            sender_name=name,
            sender_email="ada@example.com",
        )
    )
    for policy in (email.policy.default, email.policy.SMTP):
        again = read(email.message_from_bytes(mail, policy=policy).as_bytes())
        for header, expected in (("To", address), ("From", "ada@example.com")):
            assert [one.addr_spec for one in again[header].addresses] == [expected]


def test_a_name_cannot_inject_a_header():
    evil = "Weekly\r\nBcc: evil@x.y\r\n\r\nbody"
    rendered = render(replace(EVENT, name=evil), kind="invitation", locale="en")
    mail = read(compose(replace(MAILING, sender_name=evil, recipient_name=NASTY, rendered=rendered)))
    assert mail["Bcc"] is None
    assert mail["Subject"] == "Invitation: Weekly Bcc: evil@x.y body"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "x",
        "a@b@c",
        "a b@c.d",
        "<a@b.c>",
        "a@b.c\r\nBcc: x@y.z",
        "a@-b.c",
        ".a@b.c",
        "a@b..c",
        "é@b.c",
        "a,b@c.d",
        "a" * 65 + "@b.c",
    ],
)
def test_what_is_no_bare_address_is_refused(address):
    assert not is_mail_address(address)
    with pytest.raises(ValueError):
        compose(replace(MAILING, recipient_email=address))


@pytest.mark.parametrize(
    "address",
    [
        "a@b.co",
        "first.last+tag@sub.example.org",
        "o'neil@example.org",
        "a@localhost",
        "a@xn--bcher-kva.example",
    ],
)
def test_bare_addresses_are_taken(address):
    assert is_mail_address(address)


@pytest.mark.parametrize("address", ["a@b.c1", "a@ext.12", "a@1.2.3.4", "a@ext.c", "a@host.x-y"])
def test_an_address_without_a_top_level_domain_gets_no_mail(address):
    assert not is_mail_address(address)
    assert is_address(address)


OLD_MAIL = compose(MAILING)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            b"To: Bob <bob@example.org>",
            b"To: victim@evil.example, Bob Builder of the Department\r\n and Titles <bob@example.org>",
            "To header",
        ),
        (b"To: Bob <", b'To: "Group: victim@evil.example;" <', "To header"),
        (b"To: Bob <", b'To: "victim@evil.example" <', "To header"),
        (b"To: Bob <bob@example.org>", b"To: eve@example.org", "To header"),
        (b"To: Bob <bob@example.org>", b"To: undisclosed-recipients:;", "To header"),
        (b"From: Ada Lovelace <", b"From: Lovelace, Ada <", "From header"),
        (b"From: Ada Lovelace <", b'From: "Sales: R&D;" <', "From header"),
        (b"Subject:", b"Cc: eve@example.org\r\nSubject:", "cc header"),
        (b"Subject:", b"Bcc: eve@example.org\r\nSubject:", "bcc header"),
        (b"Subject:", b"Resent-To: eve@example.org\r\nSubject:", "resent-to header"),
        (b"Subject:", b"To: eve@example.org\r\nSubject:", "2 to headers"),
        (b"Subject: ", b"Subject: " + b"x" * 999, "longer than 998"),
        (b"Subject: ", b"Subject: \n", "CRLF"),
        (b"Subject: ", b"X: y\r\n\r\nSubject: ", "headers"),
        (b"Subject: ", b"no header\r\nCc: eve@example.org\r\nSubject: ", "malformed"),
        (b"Content-Type: text/plain", b"Content-Type: text/html\r\nContent-Type: text/plain", "parts"),
        (b"Content-Type: text/html", b"Content-Type: text/html\r\nContent-Type: text/html", "exactly one"),
    ],
)
def test_a_mail_that_could_reach_another_address_is_found(old, new, reason):
    """What releases before this one wrote, and worse."""
    assert OLD_MAIL.count(old) >= 1
    check_mail(OLD_MAIL, sender_email="ADA@example.com", recipient_email="bob@EXAMPLE.org")
    with pytest.raises(MailUnsafe, match=reason):
        check_mail(
            OLD_MAIL.replace(old, new, 1), sender_email="ada@example.com", recipient_email="bob@example.org"
        )


def test_names_that_are_rightly_quoted_pass():
    for name in (b'"Dr. Bob"', b'"Builder, Bob"', b'"bob@example.org"', b"=?utf-8?b?Qm9i?="):
        mail = OLD_MAIL.replace(b"To: Bob <", b"To: " + name + b" <")
        check_mail(mail, sender_email="ada@example.com", recipient_email="bob@example.org")


def test_html_is_escaped_and_plain_text_is_not():
    text, html = bodies(replace(EVENT, name="<b>R&D</b>", description='<script>"x"</script>'))
    assert "<b>R&D</b>" in text
    assert '<script>"x"</script>' in text
    assert "<script>" not in html
    assert "&lt;b&gt;R&amp;D&lt;/b&gt;" in html


def test_the_html_loads_nothing_and_knows_phones_and_dark_mode():
    _, html = bodies(EVENT, links=LINKS)
    assert not any(word in html for word in ("<img", "<script", "src=", "@import", "<link"))
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 480px" in html
    assert 'name="viewport"' in html
    assert 'class="button accepted" href="https://cal.example' in html
    assert html.count("style=") > 10  # inlined, for clients that drop <style>


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "vbscript:x"])
def test_no_script_address_is_in_a_mail(address):
    event = replace(EVENT, meeting_url=address, location=address, description=f"see {address}", name=address)
    for body in bodies(event, links=RsvpLinks(address, address, address)):
        assert address not in body
        assert address.partition(":")[0] + ":" not in body.replace("color-scheme:", "")


@pytest.mark.parametrize("status", ["accepted", "tentative", "declined"])
@pytest.mark.parametrize("locale", ["en", "fr"])
def test_a_reply_says_who_replied_what(status, locale):
    rendered = render(EVENT, kind="reply", locale=locale, replying=replace(BOB, response_status=status))
    word = {
        "en": {"accepted": "accepted", "tentative": "maybe", "declined": "declined"},
        "fr": {"accepted": "accepté", "tentative": "peut-être", "declined": "refusé"},
    }[locale][status]
    for body in (rendered.text, rendered.html):
        assert "Bob" in body
        assert word in body
    assert "Bob" in rendered.subject


def test_times_are_written_with_their_zone():
    assert when_text(EVENT, "en") == "Tuesday 24 November 2026, 10:00 – 11:00 (Europe/Paris, CET)"
    assert when_text(EVENT, "fr") == "mardi 24 novembre 2026, 10:00 – 11:00 (Europe/Paris, CET)"
    assert when_text(replace(EVENT, timezone="UTC"), "en").endswith("09:00 – 10:00 (UTC)")
    assert when_text(replace(EVENT, timezone="Asia/Kathmandu"), "en").endswith("(Asia/Kathmandu, UTC+5:45)")
    overnight = replace(EVENT, end=datetime(2026, 12, 1, 0, 30, tzinfo=UTC))
    assert (
        when_text(overnight, "fr")
        == "mardi 24 novembre 2026, 10:00 – mardi 1er décembre 2026, 01:30 (Europe/Paris, CET)"
    )


def test_an_all_day_event_names_its_days():
    day = replace(
        EVENT,
        is_all_day=True,
        start=datetime(2026, 11, 23, 23, tzinfo=UTC),
        end=datetime(2026, 11, 24, 23, tzinfo=UTC),
    )
    assert when_text(day, "en") == "Tuesday 24 November 2026, all day"
    two = replace(day, end=datetime(2026, 11, 25, 23, tzinfo=UTC))
    assert when_text(two, "fr") == "mardi 24 novembre 2026 – mercredi 25 novembre 2026, toute la journée"


@pytest.mark.parametrize(
    ("rule", "english", "french"),
    [
        (
            "FREQ=WEEKLY;BYDAY=MO,WE",
            "Every week on Monday and Wednesday",
            "Toutes les semaines le lundi et mercredi",
        ),
        ("FREQ=DAILY;INTERVAL=2;COUNT=5", "Every 2 days, 5 times", "Tous les 2 jours, 5 fois"),
        (
            "FREQ=MONTHLY;UNTIL=20270101T230000Z",
            "Every month, until Saturday 2 January 2027",
            "Tous les mois, jusqu’au samedi 2 janvier 2027",
        ),
        ("FREQ=MONTHLY;BYDAY=-1FR", "Repeats", "Se répète"),
    ],
)
def test_a_series_is_described_in_words(rule, english, french):
    series = replace(EVENT, recurrence=(f"RRULE:{rule}",))
    assert repeats_text(series, "en") == english
    assert repeats_text(series, "fr") == french
    assert repeats_text(EVENT, "en") == ""


@pytest.mark.parametrize(
    ("locale", "language"),
    [("fr", "fr"), ("fr-CA", "fr"), ("FR_fr", "fr"), ("en-GB", "en"), ("de", "en"), (None, "en"), ("", "en")],
)
def test_the_language_comes_from_the_locale(locale, language):
    assert language_of(locale) == language
