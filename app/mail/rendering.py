"""Subjects and bodies of mails, by Jinja2 templates and, for the HTML, css-inline."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from css_inline import CSSInliner
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.core.languages import Language, language_of
from app.core.web_urls import safe_url
from app.events.data import ResponseStatus
from app.itip.build import MOST_GUESTS_LISTED, Method
from app.itip.clean import clean_line, clean_text
from app.itip.event import Guest, MailedEvent
from app.mail.texts import TEXTS
from app.mail.when import repeats_text, when_text

Kind = Literal["invitation", "update", "cancelled", "uninvited", "reply"]

_GUESTS_SHOWN = 20
_LONGEST_SUBJECT = 200
_HTTP_LINK = re.compile(r"^https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RsvpLinks:
    """The three links of a guest, one for each reply."""

    accepted: str
    tentative: str
    declined: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """The words of a mail. `thread_subject` is `subject` without the `Re: ` of a later mail."""

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
    """The subject and bodies of a mail. `replying` is the guest who replied, for a reply.

    `thread_subject` is the subject of the earlier mails to this recipient about the event. Messages and Gmail put a
    mail into its thread only if the subjects agree, so a later mail has `Re: ` and that subject, and says what changed
    in its first line, which inboxes show beside the subject. If the event was renamed, the mail begins a new thread.
    """
    language = language_of(locale)
    texts = TEXTS[language]
    name = clean_line(event.name) or texts["untitled"]
    who = (clean_line(replying.name) or replying.email) if replying is not None else ""
    status: ResponseStatus | None = replying.response_status if replying is not None else None
    values = {"name": name, "who": who}
    subject = (texts["subject_reply"][status] if status is not None else texts["subject"][kind]).format(
        **values
    )
    intro = (texts["replied"][status] if status is not None else texts["intro"][kind]).format(
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
    """The subject on one line, cut to 200 characters. Clients show less than this."""
    return clean_line(subject)[:_LONGEST_SUBJECT].rstrip()


def _subjects(name: str) -> set[str]:
    """The subjects that a thread about an event of this name can have."""
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
    # The <style> is kept, because phones and dark mode need its media queries. Nothing is fetched.
    return CSSInliner(keep_style_tags=True, keep_at_rules=True, load_remote_stylesheets=False)
