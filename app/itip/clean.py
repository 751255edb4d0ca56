"""Texts that API clients wrote, in the form in which mails and scheduling messages hold them."""

import re

from app.ical.writer import strip_controls

# `data:` is a word too ("Data:Science"): it is an address only where a media type or its parameters follow.
_SCRIPT = re.compile(
    r"\b(?:(javascript|vbscript):(?=\S)|(data):(?=//|[;,]|[\w.+-]+/[\w.+-]+[;,]))", re.IGNORECASE
)


def clean_text(value: str | None) -> str:
    """A text of several lines without control characters, and without addresses that run scripts."""
    if not value:
        return ""
    lines = strip_controls(value.replace("\r\n", "\n").replace("\r", "\n"))
    return _SCRIPT.sub(lambda found: f"{found[1] or found[2]} ", lines).strip()


def clean_line(value: str | None) -> str:
    """`clean_text` on one line, for names, subjects and locations."""
    return " ".join(clean_text(value).split())
