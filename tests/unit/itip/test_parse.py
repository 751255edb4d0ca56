"""Replies that come by mail."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.itip.build import build_reply
from app.itip.event import Guest
from app.itip.parse import LONGEST_CALENDAR_BYTES, parse_reply
from tests.unit.itip.test_build import BOB, EVENT, SERIES, STAMP

REPLY = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:x
METHOD:REPLY
BEGIN:VEVENT
UID:uid-1
DTSTAMP:20261120T100000Z
SEQUENCE:2
DTSTART:20261124T090000Z
ORGANIZER:mailto:ada@example.com
ATTENDEE;PARTSTAT=ACCEPTED;CN=Bob:mailto:bob@example.org
END:VEVENT
END:VCALENDAR
"""


def mail(
    ics: str | bytes = REPLY, *, sender: str = "Bob <bob@example.org>", method: str = "REPLY", **headers: str
) -> bytes:
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = "ada@example.com"
    message["Message-ID"] = "<reply@example.org>"
    for name, value in headers.items():
        message[name] = value
    message.set_content("Bob has accepted.")
    text = ics if isinstance(ics, str) else ics.decode()
    message.add_alternative(text, subtype="calendar", params={"method": method})
    return message.as_bytes()


def test_a_reply_is_read():
    reply = parse_reply(mail())
    assert reply is not None
    assert (reply.uid, reply.sequence, reply.partstat) == ("uid-1", 2, "accepted")
    assert reply.dtstamp == datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert (reply.attendee_email, reply.from_email) == ("bob@example.org", "bob@example.org")
    assert (reply.organizer_email, reply.message_id) == ("ada@example.com", "<reply@example.org>")
    assert reply.recurrence_id is None


@pytest.mark.parametrize(
    "event", [EVENT, SERIES, replace(SERIES, recurrence_id=datetime(2026, 12, 1, 9, tzinfo=UTC))]
)
def test_our_own_replies_read_back(event):
    guest: Guest = replace(BOB, response_status="declined")
    reply = parse_reply(mail(build_reply(event, stamp=STAMP, replying=guest)))
    assert reply is not None
    assert (reply.uid, reply.sequence, reply.partstat, reply.dtstamp) == (event.uid, 3, "declined", STAMP)
    assert reply.recurrence_id == event.recurrence_id


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ORGANIZER:mailto:ada@example.com\n", ""),
        ("mailto:bob", "MAILTO:bob"),
        ("mailto:bob@example.org", "mailto:BOB@Example.ORG"),
        ("METHOD:REPLY", "METHOD:reply"),
        ("\nSEQUENCE:2", "\n\n\nSEQUENCE:2\n"),
        ("PARTSTAT=ACCEPTED", "PARTSTAT=accepted"),
        ("ATTENDEE;PARTSTAT=ACCEPTED;CN=Bob:", 'ATTENDEE;CN="Bob; of: all";\n PARTSTAT=ACCEPTED:'),
        ("BEGIN:VCALENDAR", "\ufeff\nBEGIN:VCALENDAR"),
    ],
    ids=[
        "no organizer",
        "MAILTO",
        "case",
        "method's case",
        "blank lines",
        "partstat's case",
        "folded",
        "bom",
    ],
)
def test_what_clients_do_differently_is_read_all_the_same(old, new):
    assert old in REPLY
    reply = parse_reply(mail(REPLY.replace(old, new)))
    assert reply is not None
    assert (reply.uid, reply.sequence, reply.partstat) == ("uid-1", 2, "accepted")


GMAIL = (
    "BEGIN:VCALENDAR\r\nPRODID:-//Google Inc//Google Calendar 70.9054//EN\r\nVERSION:2.0\r\nCALSCALE:GREGORIAN\r\n"
    "METHOD:REPLY\r\nBEGIN:VEVENT\r\nDTSTART:20261124T090000Z\r\nDTEND:20261124T100000Z\r\n"
    "DTSTAMP:20261120T100000Z\r\nORGANIZER;CN=Ada:mailto:ada@example.com\r\nUID:uid-1\r\n"
    "ATTENDEE;CUTYPE=INDIVIDUAL;ROLE=REQ-PARTICIPANT;PARTSTAT=ACCEPTED;CN=bob@ex\r\n"
    ' ample.org;X-NUM-GUESTS=0;X-RESPONSE-COMMENT="See you: at nine":mailto:bob@\r\n example.org\r\n'
    "CREATED:20261119T100000Z\r\nDESCRIPTION:\r\nSEQUENCE:2\r\nSTATUS:CONFIRMED\r\nSUMMARY:Weekly\r\n"
    "TRANSP:OPAQUE\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)
EXCHANGE = (
    "BEGIN:VCALENDAR\r\nMETHOD:REPLY\r\nPRODID:Microsoft Exchange Server 2010\r\nVERSION:2.0\r\n"
    "BEGIN:VTIMEZONE\r\nTZID:Romance Standard Time\r\nBEGIN:STANDARD\r\nDTSTART:16010101T030000\r\n"
    "TZOFFSETFROM:+0200\r\nTZOFFSETTO:+0100\r\nRRULE:FREQ=YEARLY;INTERVAL=1;BYDAY=-1SU;BYMONTH=10\r\n"
    "END:STANDARD\r\nEND:VTIMEZONE\r\nBEGIN:VEVENT\r\n"
    "ATTENDEE;PARTSTAT=ACCEPTED;CN=Bób Doe:MAILTO:bob@example.org\r\nCOMMENT;LANGUAGE=fr-FR:\\n\r\nUID:uid-1\r\n"
    "SUMMARY;LANGUAGE=fr-FR:Accepté : Weekly\r\nDTSTART;TZID=Romance Standard Time:20261124T100000\r\n"
    "DTEND;TZID=Romance Standard Time:20261124T110000\r\nCLASS:PUBLIC\r\nDTSTAMP:20261120T100000Z\r\nSEQUENCE:2\r\n"
    "X-MICROSOFT-CDO-APPT-SEQUENCE:0\r\nX-MICROSOFT-CDO-BUSYSTATUS:BUSY\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)
APPLE = (
    "BEGIN:VCALENDAR\r\nCALSCALE:GREGORIAN\r\nPRODID:-//Apple Inc.//iPhone OS 18.1//EN\r\nMETHOD:REPLY\r\n"
    'VERSION:2.0\r\nBEGIN:VEVENT\r\nATTENDEE;CN="Bob; the one";CUTYPE=INDIVIDUAL;EMAIL="bob@example.org";PARTSTAT=A\r\n'
    ' CCEPTED:mailto:bob@example.org\r\nDTSTAMP:20261120T100000Z\r\nORGANIZER;CN="Ada";EMAIL="ada@example.com":mail\r\n'
    " to:ada@example.com\r\nREQUEST-STATUS:2.0;Success\r\nSEQUENCE:2\r\nUID:uid-1\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)


def alternative(ics: str, cte: str) -> EmailMessage:
    """A text, its HTML and the calendar, in this order."""
    message = EmailMessage(policy=SMTP)
    message.set_content("Bób a accepté.", cte="quoted-printable")
    message.add_alternative("<p>Bób a accepté.</p>", subtype="html", cte="base64")
    message.add_alternative(ics, subtype="calendar", cte=cte, params={"method": "REPLY"})
    return message


def of_gmail() -> EmailMessage:
    message = alternative(GMAIL, "7bit")
    message.add_attachment(GMAIL.encode(), maintype="application", subtype="ics", filename="invite.ics")
    return message


def of_outlook() -> EmailMessage:
    return alternative(EXCHANGE, "base64")


def of_apple_mail() -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message.set_content("Bob")
    message.add_attachment(APPLE, subtype="calendar", cte="quoted-printable", filename="iCal.ics")
    return message


def of_thunderbird() -> EmailMessage:
    message = alternative(REPLY.replace("CN=Bob", "CN=Bób"), "8bit")
    message.add_attachment(REPLY.encode(), maintype="application", subtype="ics", filename="invite.ics")
    return message


def in_utf_16() -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message.set_content(
        REPLY.encode("utf-16"), maintype="text", subtype="calendar", params={"charset": "UTF-16"}
    )
    return message


@pytest.mark.parametrize("write", [of_gmail, of_outlook, of_apple_mail, of_thunderbird, in_utf_16])
def test_replies_as_clients_write_them_are_read(write):
    message = write()
    message["From"] = "Bób Doe <bob@example.org>"
    reply = parse_reply(message.as_bytes())
    assert reply is not None
    assert (reply.uid, reply.sequence, reply.partstat) == ("uid-1", 2, "accepted")
    assert (reply.dtstamp, reply.recurrence_id) == (datetime(2026, 11, 20, 10, tzinfo=UTC), None)
    assert (reply.attendee_email, reply.from_email) == ("bob@example.org", "bob@example.org")


@pytest.mark.parametrize(
    ("line", "instance", "is_date"),
    [
        ("RECURRENCE-ID:20261201T090000Z", datetime(2026, 12, 1, 9, tzinfo=UTC), False),
        (
            "RECURRENCE-ID;TZID=Romance Standard Time:20261201T100000",
            datetime(2026, 12, 1, 9, tzinfo=UTC),
            False,
        ),
        (
            'RECURRENCE-ID;TZID="W. Europe Standard Time":20261201T100000',
            datetime(2026, 12, 1, 9, tzinfo=UTC),
            False,
        ),
        ("RECURRENCE-ID;VALUE=DATE:20261201", datetime(2026, 12, 1, tzinfo=UTC), True),
    ],
)
def test_a_reply_to_one_instance_names_it(line, instance, is_date):
    reply = parse_reply(mail(REPLY.replace("SEQUENCE:2", f"SEQUENCE:2\n{line}")))
    assert reply is not None
    assert (reply.recurrence_id, reply.recurrence_is_date) == (instance, is_date)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("METHOD:REPLY", "METHOD:REQUEST"),
        ("METHOD:REPLY", "METHOD:REPLY\nMETHOD:CANCEL"),
        ("METHOD:REPLY\n", ""),
        ("mailto:bob@", "mailto:eve@"),
        ("ATTENDEE;PARTSTAT=ACCEPTED;CN=Bob:mailto:bob@example.org\n", ""),
        ("PARTSTAT=ACCEPTED", "PARTSTAT=DELEGATED"),
        ("PARTSTAT=ACCEPTED;", ""),
        ("UID:uid-1\n", ""),
        ("DTSTAMP:20261120T100000Z\n", ""),
        ("SEQUENCE:2", "RECURRENCE-ID;TZID=Nowhere:20261201T100000"),
        ("SEQUENCE:2", "RECURRENCE-ID:soon"),
        ("VEVENT", "VTODO"),
        ("END:VEVENT\nEND:VCALENDAR\n", ""),
    ],
)
def test_what_is_no_reply_of_the_sender_does_not_count(old, new):
    assert old in REPLY
    assert parse_reply(mail(REPLY.replace(old, new))) is None


@pytest.mark.parametrize(
    "sender", ["eve@example.org", "bob@example.org, eve@example.org", "nobody", "bob@example.org.evil.com"]
)
def test_another_persons_mail_does_not_count(sender):
    assert parse_reply(mail(sender=sender)) is None


def test_a_reply_in_plain_text_does_not_count():
    assert parse_reply(mail().replace(b"text/calendar", b"text/x-calendar")) is None
    assert parse_reply(mail().replace(b"text/calendar", b"text/plain")) is None


def test_two_from_headers_do_not_count():
    raw = b"From: bob@example.org\r\n" + mail()
    assert len(message_from_bytes(raw).get_all("From", [])) == 2
    assert parse_reply(raw) is None


def from_header(text: str) -> bytes:
    """As written: the library would quote it."""
    return mail(sender="Bob <bob@example.org>").replace(
        b"From: Bob <bob@example.org>", f"From: {text}".encode()
    )


@pytest.mark.parametrize(
    "sender",
    ['"bob@example.org" <eve@example.org>', "bob@example.org <eve@example.org>"],
)
def test_the_display_name_is_not_the_sender(sender):
    assert parse_reply(from_header(sender)) is None


@pytest.mark.parametrize(
    "sender",
    [
        "bob@example.org <bob@example.org>",  # the name should be quoted, and some clients do not
        "bob@work.example <bob@example.org>",
        "Bob @ Work <bob@example.org> ",
        "=?utf-8?q?B=C3=B6b?= <bob@example.org>",
        "<bob@example.org>",
        "bob@example.org (Bob)",
    ],
)
def test_the_address_in_angle_brackets_is_the_sender(sender):
    reply = parse_reply(from_header(sender))
    assert reply is not None
    assert reply.from_email == "bob@example.org"


@pytest.mark.parametrize(
    "sender",
    [
        "bob@example.org <bob@example.org> <eve@example.org>",
        "eve@example.org, bob@example.org <bob@example.org>",
        "Eve <eve@example.org>, bob@example.org <bob@example.org>",
        "group: bob@example.org <bob@example.org>;",
        "eve@example.org <bob@example.org> (<eve@example.org>",
    ],
)
def test_a_sender_that_is_not_plainly_one_does_not_count(sender):
    assert parse_reply(from_header(sender)) is None


@pytest.mark.parametrize(
    "written",
    ["mailto:bob%2Btag%25@example.org", "MAILTO:bob+tag%@example.org?subject=Re", "bob+tag%@example.org"],
)
def test_a_mailto_may_be_percent_encoded(written):
    ics = REPLY.replace("mailto:bob@example.org", written).replace(
        "mailto:ada@example.com", "mailto:ada%2Bcal@example.com"
    )
    reply = parse_reply(mail(ics, sender="Bob <bob+tag%@example.org>"))
    assert reply is not None
    assert (reply.attendee_email, reply.organizer_email) == ("bob+tag%@example.org", "ada+cal@example.com")


@pytest.mark.parametrize(
    "email", ["100%25@example.org", "a?subject=b&c#d@example.org", "bob+tag@example.org"]
)
def test_our_own_replies_read_back_with_any_address(email):
    reply = parse_reply(
        mail(build_reply(EVENT, stamp=STAMP, replying=replace(BOB, email=email)), sender=email)
    )
    assert reply is not None
    assert reply.attendee_email == email


@pytest.mark.parametrize(
    ("headers", "doubt"),
    [
        ([], None),
        (["X-StMsg-Sender-Auth: none"], "none"),
        (["x-stmsg-sender-auth:  FAIL "], "fail"),
        (["X-StMsg-Sender-Auth: pass"], None),  # any sender could write it
        (["X-StMsg-Sender-Auth: pass", "X-StMsg-Sender-Auth: fail"], "fail"),
        (["X-StMsg-Sender-Auth: fail", "X-StMsg-Sender-Auth: pass"], "fail"),
        (["X-StMsg-Sender-Auth: none", "X-StMsg-Sender-Auth: fail"], "fail"),
        (["X-StMsg-Sender-Auth: something"], "none"),
        (["X-StMsg-Processing-Failed: true"], "none"),
    ],
)
def test_what_messages_wrote_into_the_mail_is_read(headers, doubt):
    reply = parse_reply("".join(f"{line}\r\n" for line in headers).encode() + mail())
    assert reply is not None
    assert reply.sender_doubt == doubt


def test_without_dtstamp_the_mails_date_counts():
    reply = parse_reply(
        mail(REPLY.replace("DTSTAMP:20261120T100000Z\n", ""), Date="Fri, 20 Nov 2026 11:30:00 +0100")
    )
    assert reply is not None
    assert reply.dtstamp == datetime(2026, 11, 20, 10, 30, tzinfo=UTC)


def test_a_part_that_is_too_large_does_not_count():
    long = "".join(f"X-LONG:{'x' * 60}\n" for _ in range(LONGEST_CALENDAR_BYTES // 60))
    assert parse_reply(mail(REPLY.replace("BEGIN:VEVENT\n", f"BEGIN:VEVENT\n{long}"))) is None


def test_a_forwarded_reply_is_not_the_forwarders():
    message = EmailMessage(policy=SMTP)
    message["From"] = "bob@example.org"
    message.set_content("What is this?")
    message.add_attachment(message_from_bytes(mail(sender="eve@example.org"), policy=SMTP))
    assert b"message/rfc822" in message.as_bytes()
    assert parse_reply(message.as_bytes()) is None


def test_one_mail_may_reply_to_the_series_and_single_instances():
    series = REPLY[REPLY.index("BEGIN:VEVENT") : REPLY.index("END:VCALENDAR")]
    instance = series.replace("SEQUENCE:2", "SEQUENCE:2\nRECURRENCE-ID:20261201T090000Z").replace(
        "PARTSTAT=ACCEPTED", "PARTSTAT=DECLINED"
    )
    foreign = series.replace("uid-1", "uid-2")
    reply = parse_reply(mail(REPLY.replace(series, instance + series + foreign)))
    assert reply is not None
    assert (reply.uid, reply.partstat, reply.recurrence_id) == ("uid-1", "accepted", None)
    (other,) = reply.others
    assert (other.uid, other.partstat) == ("uid-1", "declined")
    assert other.recurrence_id == datetime(2026, 12, 1, 9, tzinfo=UTC)


def test_the_first_part_with_a_reply_counts():
    message = EmailMessage(policy=SMTP)
    message["From"] = "bob@example.org"
    message.set_content("x")
    for method, uid in (("REQUEST", "first"), ("REPLY", "second"), ("REPLY", "third")):
        text = REPLY.replace("METHOD:REPLY", f"METHOD:{method}").replace("uid-1", uid)
        message.add_attachment(text, subtype="calendar", params={"method": method})
    reply = parse_reply(message.as_bytes())
    assert reply is not None
    assert reply.uid == "second"


WHOLE = mail()


@given(st.binary(max_size=400))
@settings(deadline=2000)  # the longest of these examples must not keep a server busy
@example(b"")
@example(b"From: \xff\xfe <\x00@\n\n")
@example(
    b"Content-Type: text/calendar; charset=nonsense\nFrom: a@b\n\nBEGIN:VCALENDAR\nMETHOD:REPLY\nEND:VCALENDAR"
)
@example(b"Content-Type: multipart/mixed" + b";" * 500_000 + b"\n\n")
@example(b"From: " + b"(" * 500_000 + b"\n\n")
@example(
    b"From: a@b\nContent-Type: text/calendar\n\nBEGIN:VCALENDAR\nMETHOD:REPLY"
    + b" \n" * 300_000
    + b"END:VCALENDAR"
)
@example(b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(2000)))
@example(b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 450_000)
@example(b"From: a@b\nContent-Type: text/plain\n" + b"a:b\n" * 3_000_000)
@example(
    b"From: a@b\nContent-Type: text/calendar\n\nBEGIN:VCALENDAR\nMETHOD:a"
    + b" " * 500_000
    + b"b\nEND:VCALENDAR"
)
@example(b"From: a@b\nContent-Type: text/calendar; charset=punycode\n\nBEGIN:VCALENDAR\n-" + b"z" * 500_000)
def test_garbage_is_no_reply_and_no_error(garbage):
    assert parse_reply(garbage) is None


@pytest.mark.processor_time
@pytest.mark.parametrize("frequency", ["DAILY", "YEARLY"])
def test_a_zone_of_rules_that_never_come_true_takes_no_time(frequency):
    rules = (
        "BEGIN:STANDARD\nDTSTART:19700101T000000\nTZOFFSETFROM:+0100\nTZOFFSETTO:+0100\n"
        f"RRULE:FREQ={frequency};BYMONTH=2;BYMONTHDAY=30\nEND:STANDARD\n"
    ) * 500
    zone = f"BEGIN:VTIMEZONE\nTZID:Mine\n{rules}END:VTIMEZONE\nBEGIN:VEVENT"
    line = "RECURRENCE-ID;TZID=Mine:20261201T100000\nSEQUENCE:2"
    started = time.process_time()
    parse_reply(mail(REPLY.replace("BEGIN:VEVENT", zone).replace("SEQUENCE:2", line)))
    assert time.process_time() - started < 15


@given(st.integers(0, len(WHOLE)), st.binary(max_size=20), st.integers(0, 20))
def test_a_damaged_reply_never_raises(at, patch, cut):
    parse_reply(WHOLE[:at] + patch + WHOLE[at + cut :])
