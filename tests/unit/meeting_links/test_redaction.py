"""Secrets of links, masked for logs."""

import pytest

from app.meeting_links.extract import (
    redact,
)
from tests.unit.meeting_links.links import MEET, TEAMS_SHORT, enc, safe_link

# --- secrets in logs


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://zoom.us/j/81234567890?pwd=AbC.1#success", "https://zoom.us/j/81234567890?pwd=***#success"),
        ("https://zoom.us/w/81234567890?tk=a.b-c&pwd=x&zak=y&omn=1", "https://zoom.us/w/81234567890?tk=***&pwd=***&zak=***&omn=1"),
        (f"Join {TEAMS_SHORT} now", "Join https://teams.microsoft.com/meet/2345678901234?p=*** now"),
        ("https://acme.whereby.com/room?roomKey=ey&x=1", "https://acme.whereby.com/room?roomKey=***&x=1"),
        ("https://8x8.vc/a/b?jwt=ey.J", "https://8x8.vc/a/b?jwt=***"),
        ("https://meet.jit.si/b#jwt=ey.J", "https://meet.jit.si/b#jwt=***"),
        ("https://zoom.us/j/1?PWD=AbC", "https://zoom.us/j/1?PWD=***"),
        ("<a href='https://zoom.us/j/1?a=b&amp;pwd=AbC'>", "<a href='https://zoom.us/j/1?a=b&amp;pwd=***>"),
        ("pwd=AbC", "pwd=***"),
        ("https://bluejeans.com/123456789/4321?x=1", "https://bluejeans.com/123456789/***?x=1"),
        ("https://example.org/?help=1&top=2&shop=3", "https://example.org/?help=1&top=2&shop=3"),
        (MEET, MEET),
    ],
)  # fmt: skip
def test_secrets_are_masked_and_nothing_else_is(text: str, masked: str) -> None:
    assert redact(text) == masked
    assert redact(masked) == masked


@pytest.mark.parametrize("name", ["pwd", "p", "tk", "zak", "jwt", "roomKey"])
def test_secrets_are_masked_inside_wrappers(name: str) -> None:
    secret = "S3cr3tW0rd"
    url = f"https://zoom.us/j/81234567890?a=b&{name}={secret}"
    v2 = enc(url).replace("%", "-").replace("-2F", "_")
    for wrapped in (
        url,
        enc(url),
        enc(url, 2),
        enc(url, 3),
        safe_link(url),
        safe_link(safe_link(url)),
        f"https://urldefense.proofpoint.com/v2/url?u={v2}&d=x",
        f"https://urldefense.com/v3/__{url}__;!!A!B$",
        f"https://www.google.com/url?q={enc(url)}",
    ):
        assert secret not in redact(wrapped)
