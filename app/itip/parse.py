"""Replies to invitations by mail (iMIP, RFC 6047). `parse_reply` raises no exception."""

import codecs
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.errors import MessageError
from email.message import Message
from email.utils import getaddresses, parsedate_to_datetime
from typing import Literal
from urllib.parse import unquote

from app.core.addresses import same_address
from app.events.data import ResponseStatus
from app.ical.components import Component, Line, normalize, split
from app.ical.errors import CalendarUnreadable
from app.ical.participation import parse_partstat
from app.ical.timezones import ZoneTable
from app.ical.values import parse_time

LONGEST_CALENDAR_BYTES = 512 * 1024
_LONGEST_MAIL_BYTES = 25 * 1024 * 1024
_LONGEST_HEADER = 4_000
_MOST_PARTS = 100
_MOST_DASHES = 10_000
_MOST_LINES = 1_000_000
_MOST_WORK = 6_000_000  # about a second
_MOST_REPLIES = 20  # each one is a write
_MOST_ZONES = 4
_LONGEST_VALUE = 1000
_HIGHEST_SEQUENCE = 2**31 - 1

_ADDRESS = re.compile(r"[!-~]{1,254}@[!-~]{1,254}")
# `bob@example.org <bob@example.org>`: not RFC 5322, which wants the name quoted, but some clients write it.
_BARE_NAME = re.compile(r"[^<>\"(),:;\\]*<([!-;=?-~]+)>\s*")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CONTENT_TYPE = re.compile(rb"^content-type[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*", re.IGNORECASE | re.MULTILINE)
_METHOD = re.compile(rb"^METHOD[^:\n]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_SLOW_CODECS = frozenset({"punycode", "idna"})  # quadratic, and no charset of any mail

SenderDoubt = Literal["none", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedReply:
    """The reply of one guest, as a mail says. Nothing in it is authenticated.

    `recurrence_id`: the instance that the reply is about, aware, in UTC; if `recurrence_is_date`, the midnight (UTC) of
    a date in the event's own zone. `dtstamp`: aware, in UTC; the mail's Date if the reply has none. `from_email` is the
    mail's only sender, and the same address as `attendee_email`, which is as written in From. `sender_doubt` is the
    verdict of Messages (docs/reference/messages.md, "Sender verdicts"): `fail` if the mail looks forged, `none` if its
    sender could not be verified, None for a mail that was verified or not checked. `others` are further replies in the same mail, such as
    replies to single instances of the series.
    """

    uid: str
    recurrence_id: datetime | None
    recurrence_is_date: bool
    sequence: int
    dtstamp: datetime
    attendee_email: str
    partstat: ResponseStatus
    from_email: str
    message_id: str | None
    organizer_email: str | None
    sender_doubt: SenderDoubt | None = None
    others: tuple["ParsedReply", ...] = ()


def parse_reply(mail: bytes) -> ParsedReply | None:
    """Return the reply in a mail; None if it has none (docs/reference/icalendar.md, "Replies").

    The reply is the first text/calendar part with METHOD:REPLY of at most 512 KiB in which the sender is an ATTENDEE.
    The ORGANIZER may be missing, as in replies of outlook.com, and so may the SEQUENCE, which is then 0.
    """
    if len(mail) > _LONGEST_MAIL_BYTES or not _is_cheap(mail) or _has_hidden_lines(mail):
        return None
    # The library's parser raises many kinds of errors for unusual input.
    with suppress(
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
        MessageError,
        CalendarUnreadable,
    ):
        return _read(message_from_bytes(mail))
    return None


def _is_cheap(mail: bytes) -> bool:
    """Whether the library's parser takes a short time.

    It compares each line with the boundary of each open part, makes a message of what follows each boundary, and takes
    quadratic time for a long Content-Type.
    """
    text = mail.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    headers = [len(found[0]) for found in _CONTENT_TYPE.finditer(text)]
    lines = text.count(b"\n")
    is_short = max(headers, default=0) <= _LONGEST_HEADER and lines <= _MOST_LINES
    has_few_parts = len(headers) <= _MOST_PARTS and text.count(b"\n--") <= _MOST_DASHES
    return is_short and has_few_parts and len(headers) * lines <= _MOST_WORK


def _has_hidden_lines(mail: bytes) -> bool:
    """Whether the header has a CR without LF.

    The library takes it for the end of a line, and many other parsers do not: they would have checked another From, and
    the signature of another mail.
    """
    head = _HEAD_END.split(mail, maxsplit=1)[0]
    return b"\r" in head.replace(b"\r\n", b"")


def _read(message: Message) -> ParsedReply | None:
    from_email = _only_sender(message)
    body = _first_reply(message)
    if from_email is None or body is None:
        return None
    components = list(split(body))
    events = [component for component in components if component.name == "VEVENT"]
    if not events:
        return None
    zones = ZoneTable([one for one in components if one.name == "VTIMEZONE"][:_MOST_ZONES])
    # A reply to a series may list instances too. The series goes first.
    events.sort(key=lambda event: _find(event, "RECURRENCE-ID") is not None)
    replies = [_reply(event, zones, message, from_email) for event in events[:_MOST_REPLIES]]
    found = [reply for reply in replies if reply is not None]
    if not found:
        return None
    return replace(
        found[0],
        sender_doubt=_sender_doubt(message),
        others=tuple(reply for reply in found[1:] if reply.uid == found[0].uid),
    )


def _only_sender(message: Message) -> str | None:
    """The address in From, if it is exactly one."""
    headers = [str(value) for value in message.get_all("From", [])]
    if len(headers) != 1 or len(headers[0]) > _LONGEST_HEADER:
        return None
    bare = _BARE_NAME.fullmatch(headers[0])
    found = [bare[1]] if bare else [address for _, address in getaddresses(headers) if address]
    if len(found) != 1 or not _ADDRESS.fullmatch(found[0]):
        return None
    return found[0]


def _sender_doubt(message: Message) -> SenderDoubt | None:
    """The worst verdict in the mail's headers.

    Messages removes such headers of senders and adds its own. A good verdict may still be a sender's, and is ignored. A
    bad verdict counts, because a sender who writes it harms only their own mail.
    """
    verdicts = {str(value).strip().lower() for value in message.get_all("X-StMsg-Sender-Auth", [])}
    if "fail" in verdicts:
        return "fail"
    # "Processing-Failed": delivered after 48 hours although a check could not be made.
    return "none" if verdicts - {"pass"} or "X-StMsg-Processing-Failed" in message else None


def _first_reply(message: Message) -> bytes | None:
    """The unfolded text of the first calendar part whose METHOD is REPLY."""
    for number, part in enumerate(_own_parts(message)):
        if number >= _MOST_PARTS:
            return None
        if part.get_content_type() != "text/calendar" or part.is_multipart():
            continue
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes) or len(payload) > LONGEST_CALENDAR_BYTES:
            continue
        try:
            body = normalize(_as_utf8(payload, part.get_content_charset()))
        except CalendarUnreadable:
            continue
        methods = {method.strip().upper() for method in _METHOD.findall(body)}
        if methods == {b"REPLY"}:
            return body
    return None


def _own_parts(message: Message) -> Iterator[Message]:
    """Yield the mail and its parts, without those of attached mails: a forwarded reply is another guest's."""
    yield message
    if message.is_multipart() and message.get_content_maintype() == "multipart":
        for part in message.get_payload():
            if isinstance(part, Message):
                yield from _own_parts(part)


def _as_utf8(payload: bytes, charset: str | None) -> bytes:
    if charset in {None, "utf-8", "us-ascii"}:
        return payload
    try:
        if codecs.lookup(charset or "utf-8").name in _SLOW_CODECS:
            return payload
        return payload.decode(charset or "utf-8", "replace").encode()
    except (LookupError, ValueError):
        return payload


def _reply(event: Component, zones: ZoneTable, message: Message, from_email: str) -> ParsedReply | None:
    uid = _text(event, "UID")
    attendee = _own_attendee(event, from_email)
    dtstamp = _dtstamp(event, message)
    if uid is None or attendee is None or dtstamp is None:
        return None
    partstat = parse_partstat(attendee.parameter("PARTSTAT"))
    written = _find(event, "RECURRENCE-ID")
    recurrence_id, is_date = _instance(written, zones) if written is not None else (None, False)
    if partstat is None or (written is not None and recurrence_id is None):
        # A reply to an instance that cannot be read must not become a reply to the series.
        return None
    organizer = _find(event, "ORGANIZER")
    return ParsedReply(
        uid=uid,
        recurrence_id=recurrence_id,
        recurrence_is_date=is_date,
        sequence=_sequence(event),
        dtstamp=dtstamp,
        attendee_email=from_email,
        partstat=partstat,
        from_email=from_email,
        message_id=_message_id(message),
        organizer_email=_mailto(organizer) or None if organizer is not None else None,
    )


def _find(event: Component, name: str) -> Line | None:
    return next((line for line in event.lines() if line.name == name), None)


def _text(event: Component, name: str) -> str | None:
    line = _find(event, name)
    return line.text if line is not None and 0 < len(line.text) <= _LONGEST_VALUE else None


def _own_attendee(event: Component, from_email: str) -> Line | None:
    attendees: Sequence[Line] = [line for line in event.lines() if line.name == "ATTENDEE"]
    return next(
        (line for line in attendees if any(same_address(one, from_email) for one in _spellings(line))), None
    )


def _mailto(line: Line) -> str:
    """The address of a `mailto:` URI (RFC 6068), or the bare one that some clients write instead."""
    value = line.value.strip()
    return unquote(value[7:].partition("?")[0]).strip() if value[:7].lower() == "mailto:" else value


def _spellings(line: Line) -> Iterator[str]:
    """Yield the address decoded, and as written by clients that do not encode % and ?."""
    yield _mailto(line)
    value = line.value.strip()
    if value[:7].lower() == "mailto:":
        yield value[7:].strip()


def _sequence(event: Component) -> int:
    text = (_text(event, "SEQUENCE") or "0").strip()
    return min(int(text), _HIGHEST_SEQUENCE) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _dtstamp(event: Component, message: Message) -> datetime | None:
    """DTSTAMP, which is in UTC (RFC 5545 3.8.7.2); the mail's own Date where it is missing."""
    written = parse_time(_text(event, "DTSTAMP") or "")
    if written is not None and not written.is_date:
        return written.wall.replace(tzinfo=UTC)
    try:
        at = parsedate_to_datetime(str(message.get("Date", "")))
    except (ValueError, OverflowError):
        return None
    # "-0000" as zone makes the parser return a naive time; it is UTC all the same.
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)


def _instance(line: Line, zones: ZoneTable) -> tuple[datetime | None, bool]:
    written = parse_time(line.value)
    if written is None:
        return None, False
    if written.is_date or written.is_utc:
        return written.wall.replace(tzinfo=UTC), written.is_date
    name = line.parameter("TZID")
    zone = zones.find(name) if name else zones.calendar
    if zone is None:
        return None, False
    return written.wall.replace(tzinfo=zone.tzinfo).astimezone(UTC), False


def _message_id(message: Message) -> str | None:
    value = str(message.get("Message-ID", "")).strip()
    return value if value and len(value) <= _LONGEST_VALUE and value.isprintable() else None
