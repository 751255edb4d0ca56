"""Subjects and texts of the mails, in English and French: Jinja2, and css-inline for the HTML."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal
from zoneinfo import ZoneInfo

from css_inline import CSSInliner
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.core.languages import Language, language_of
from app.core.web_urls import safe_url
from app.events.data import ResponseStatus
from app.ical.values import parse_time
from app.itip.build import MOST_GUESTS_LISTED, Method
from app.itip.clean import clean_line, clean_text
from app.itip.event import Guest, MailedEvent
from app.mail.texts import TEXTS, Texts

Kind = Literal["invitation", "update", "cancelled", "uninvited", "reply"]

_GUESTS_SHOWN = 20
_LONGEST_SUBJECT = 200
_HTTP_LINK = re.compile(r"^https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RsvpLinks:
    """The three addresses of a guest's answers."""

    accepted: str
    tentative: str
    declined: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """`text` is plain, and not HTML-escaped. `thread_subject`: the `subject`, without the prefix of a later mail."""

    language: Language
    subject: str
    thread_subject: str
    text: str
    html: str


def kind_of(method: Method, *, is_update: bool, is_whole: bool) -> Kind:
    if method == "REPLY":
        return "reply"
    if method == "CANCEL":
        return "cancelled" if is_whole else "uninvited"
    return "update" if is_update else "invitation"


def render(
    event: MailedEvent,
    *,
    kind: Kind,
    locale: str | None,
    replying: Guest | None = None,
    links: RsvpLinks | None = None,
    thread_subject: str | None = None,
) -> Rendered:
    """The mail's subject and bodies. `replying`: who answered, for a reply.

    `thread_subject`: of the earlier mails to this recipient about the event. Messages and Gmail put a mail into its
    thread only if the subject is the same too, so a later mail is `Re: ` that; what it tells stands in its first line,
    which inboxes show beside the subject. After the event got another name the old subject would mislead, and the
    mail begins a thread of its own.
    """
    language = language_of(locale)
    texts = TEXTS[language]
    name = clean_line(event.name) or texts["untitled"]
    who = (clean_line(replying.name) or replying.email) if replying is not None else ""
    answer: ResponseStatus | None = replying.response_status if replying is not None else None
    values = {"name": name, "who": who}
    subject = (texts["subject_reply"][answer] if answer is not None else texts["subject"][kind]).format(
        **values
    )
    intro = (texts["answered"][answer] if answer is not None else texts["intro"][kind]).format(
        organizer=_shown(event.organizer.name, event.organizer.email), **values
    )
    headline = ""
    begun = thread_subject
    if begun is not None and begun in _subjects(name):
        headline, subject = subject, f"Re: {begun}"
    else:
        subject = begun = cut_subject(subject)
    guests = event.guests if kind != "reply" and len(event.guests) <= MOST_GUESTS_LISTED else ()
    context: dict[str, Any] = {
        "language": language,
        "t": texts,
        "kind": kind,
        "subject": subject,
        "headline": headline,
        "intro": intro,
        "name": name,
        "who_email": replying.email if replying is not None else None,
        "when": when_text(event, language),
        "repeats": repeats_text(event, language),
        "location": clean_line(event.location),
        "meeting_url": safe_url(event.meeting_url),
        "organizer": _shown(event.organizer.name, event.organizer.email),
        "guests": [_shown(guest.name, guest.email) for guest in guests[:_GUESTS_SHOWN]],
        "more_guests": max(0, len(guests) - _GUESTS_SHOWN),
        "description": clean_text(event.description),
        "links": _safe_links(links) if kind in {"invitation", "update"} else None,
    }
    html = _inliner().inline(_environment().get_template("mail.html").render(context))
    text = _environment().get_template("mail.txt").render(context)
    return Rendered(language, subject, begun, text.strip() + "\n", html)


def first_subject(event: MailedEvent, locale: str | None) -> str:
    """The subject of an event's first invitation."""
    texts = TEXTS[language_of(locale)]
    return cut_subject(
        texts["subject"]["invitation"].format(name=clean_line(event.name) or texts["untitled"])
    )


def cut_subject(subject: str) -> str:
    """On one line, and cut: clients show less anyway."""
    return clean_line(subject)[:_LONGEST_SUBJECT].rstrip()


def _subjects(name: str) -> set[str]:
    """What a thread about an event of this name can be called."""
    return {
        cut_subject(subject.format(name=name))
        for texts in TEXTS.values()
        for subject in texts["subject"].values()
    }


def _shown(name: str | None, email: str) -> str:
    shown = clean_line(name)
    return f"{shown} ({email})" if shown and shown != email else email


def _safe_links(links: RsvpLinks | None) -> dict[str, str] | None:
    if links is None:
        return None
    found = {"accepted": links.accepted, "tentative": links.tentative, "declined": links.declined}
    return found if all(_HTTP_LINK.match(link) for link in found.values()) else None


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("app.mail", "templates"),
        # Plain text is not HTML: only the .html template is escaped.
        autoescape=select_autoescape(enabled_extensions=("html",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@lru_cache(maxsize=1)
def _inliner() -> CSSInliner:
    # The <style> stays too: phones and dark mode need its media queries. Nothing is ever fetched.
    return CSSInliner(keep_style_tags=True, keep_at_rules=True, load_remote_stylesheets=False)


# Times


def when_text(event: MailedEvent, language: Language) -> str:
    """When it is, on the wall of the event's zone, with the zone's name: `Tuesday 24 November 2026, 10:00 – 10:30 (Europe/Paris, CET)`."""
    texts = TEXTS[language]
    zone = ZoneInfo(event.timezone)
    start, end = event.start.astimezone(zone), event.end.astimezone(zone)
    if event.is_all_day:
        last = max(start, end - timedelta(days=1))
        days = (
            _day(start, texts)
            if last.date() <= start.date()
            else f"{_day(start, texts)} – {_day(last, texts)}"
        )
        return f"{days}, {texts['all_day']}"
    if start.date() == end.date():
        span = f"{_day(start, texts)}, {start:%H:%M} – {end:%H:%M}"
    else:
        span = f"{_day(start, texts)}, {start:%H:%M} – {_day(end, texts)}, {end:%H:%M}"
    return f"{span} ({_zone_name(event.timezone, start, end)})"


def _zone_name(name: str, start: datetime, end: datetime) -> str:
    """The IANA name, and what it is called there on that day. Zones without letters have their offset."""
    if name == "UTC":
        return name
    short = start.tzname() or ""
    if start.utcoffset() != end.utcoffset():
        short = f"{short}/{end.tzname()}"
    if not short.replace("/", "").isalpha():
        minutes = round((start.utcoffset() or timedelta(0)).total_seconds() / 60)
        short = f"UTC{'-' if minutes < 0 else '+'}{abs(minutes) // 60}"
        short += f":{abs(minutes) % 60:02}" if minutes % 60 else ""
    return f"{name}, {short}"


def _day(at: datetime, texts: Texts) -> str:
    day = texts["first_day"] if at.day == 1 else str(at.day)
    return f"{texts['weekdays'][at.weekday()]} {day} {texts['months'][at.month - 1]} {at.year}"


_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


def repeats_text(event: MailedEvent, language: Language) -> str:
    """How a series repeats: `Every 2 weeks on Monday and Wednesday, until 24 December 2026`; "" for a single event.

    Of rules that take more words than that: "Repeats".
    """
    if event.recurrence_id is not None or not event.recurrence:
        return ""
    texts = TEXTS[language]
    rules = [line.partition(":")[2].upper() for line in event.recurrence if line.upper().startswith("RRULE")]
    if len(rules) != 1:
        return texts["repeats"]
    parts = dict(part.partition("=")[::2] for part in rules[0].split(";"))
    spoken = _spoken_rule(parts, event, texts)
    return spoken or texts["repeats"]


def _spoken_rule(parts: Mapping[str, str], event: MailedEvent, texts: Texts) -> str | None:
    if set(parts) - {"FREQ", "INTERVAL", "BYDAY", "UNTIL", "COUNT", "WKST"}:
        return None
    every = texts["every"].get(parts.get("FREQ", ""))
    interval = parts.get("INTERVAL", "1")
    if every is None or not interval.isdigit():
        return None
    spoken = every[0] if interval == "1" else every[1].format(count=interval)
    if "BYDAY" in parts:
        days = parts["BYDAY"].split(",")
        if parts["FREQ"] != "WEEKLY" or not set(days) <= set(_WEEKDAYS):
            return None
        names = [texts["weekdays"][_WEEKDAYS.index(day)] for day in days]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {texts['last_and']} {names[-1]}"
        spoken += f" {texts['on_days']} {listed}"
    until = parse_time(parts["UNTIL"]) if "UNTIL" in parts else None
    if until is not None:
        last = until.wall
        if until.is_utc:
            last = last.replace(tzinfo=UTC).astimezone(ZoneInfo(event.timezone))
        spoken += f", {texts['until']} {_day(last, texts)}"
    elif parts.get("COUNT", "").isdigit():
        spoken += f", {texts['times'].format(count=parts['COUNT'])}"
    return spoken
