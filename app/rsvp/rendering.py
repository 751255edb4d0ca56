"""HTML of the RSVP page. It has no scripts, and its policy allows none."""

import base64
import hashlib
from functools import lru_cache
from typing import Any

from fastapi import Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from app.core.languages import Language
from app.mail.when import repeats_text, when_text
from app.rsvp.page import ACTIONS, STATUS_CODES, Action, Invited, RsvpPage
from app.rsvp.texts import TEXTS


def render(page: RsvpPage, language: Language) -> Response:
    """Return the page as an HTTP response, with the status code of its kind."""
    t = TEXTS[language]
    message = t["messages"].get(page.kind)
    if page.kind == "done":
        message = t["change"]
    elif page.has_changed:
        message = t["changed"]
    html = (
        _environment()
        .get_template("rsvp.html")
        .render(
            language=language,
            t=t,
            title=t["titles"][page.kind],
            css=Markup(_css()),  # noqa: S704 - our own file
            message=message,
            is_news=page.kind == "done" or page.has_changed,
            event=_event(page.invited, language) if page.invited is not None else None,
            form=_form(page, language) if page.kind in {"ask", "done"} else None,
        )
    )
    return Response(html, STATUS_CODES[page.kind], media_type="text/html; charset=utf-8", headers=_headers())


def _event(invited: Invited, language: Language) -> dict[str, Any]:
    organizer, attendee = invited.organizer, invited.attendee
    event = invited.component.for_mail(organizer)
    return {
        "name": event.name,
        "when": when_text(event, language),
        "repeats": repeats_text(event, language),
        "location": event.location,
        "organizer": f"{organizer.name} ({organizer.email})" if organizer.name else organizer.email,
        "attendee": f"{attendee.name} ({attendee.email})" if attendee.name else attendee.email,
        "current": TEXTS[language]["statuses"][attendee.response_status],
    }


def _form(page: RsvpPage, language: Language) -> dict[str, Any]:
    t = TEXTS[language]

    def choice(action: Action) -> dict[str, str]:
        return {"action": action, "label": t["buttons"][action]}

    if page.kind == "done":
        question, legend = "", t["change_legend"]
    elif page.action is not None:
        question, legend = t["question"].format(status=t["statuses"][page.action]), t["other"]
    else:
        question, legend = t["choose"], t["choose_legend"]
    invited = page.invited
    current = invited.attendee.response_status if page.kind == "done" and invited is not None else None
    return {
        "token": page.token,
        "when": invited.component.when if invited is not None else "",
        "question": question,
        "legend": legend,
        "main": choice(page.action) if page.action is not None else None,
        "others": [choice(action) for action in ACTIONS if action not in {page.action, current}],
    }


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("app.rsvp"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
    )


@lru_cache(maxsize=1)
def _css() -> str:
    return _environment().get_template("rsvp.css").render()


@lru_cache(maxsize=1)
def _headers() -> dict[str, str]:
    digest = base64.b64encode(hashlib.sha256(_css().encode()).digest()).decode()
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "X-Robots-Tag": "noindex, nofollow",
        "Cache-Control": "no-store",
        "Vary": "Accept-Language",
    }
