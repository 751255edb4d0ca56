"""Properties of the results for arbitrary texts."""

import re
from urllib.parse import urlsplit

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.meeting_links.extract import (
    find_all_links,
    find_meeting_link,
    parse_meeting_url,
    redact,
)
from tests.unit.meeting_links.links import CONTEXT, MEET, TEAMS, ZOOM

# --- any text at all

PIECES = st.sampled_from(
    [
        "https://", "http://", "HTTPS://", "zoommtg://", "https%3A%2F%2F", "https%253A%252F%252F", "zoom.us", "us02web.zoom.us.",
        "teams.microsoft.com", "meet.google.com/", "acme.webex.com/", "meet.jit.si/", "visio.numerique.gouv.fr/", "evil.example",
        "/j/81234567890", "/j/", "?pwd=AbC", "&amp;", "&", "&#", "&#58;", ";", "@", ":", ":443", ":8443", "#", "?", "=", "=\r\n", "=\n", "%", "%25",
        "%2F", "%C3", "\\", "/", ".", "..", "-", "–", "\u200b", "é", "о", "\ud800", "\x00", " ", "\n", "<", ">", '"', "'", "(", ")", "[", "]", "*", "**A",
        'href="', "href='", "<a ", "</a>", "<wbr>", "/l/meetup-join/19%3Aabc%40thread.v2/0", "/meet/2345678901234", "?context=", CONTEXT,
        "/dl/launcher/launcher.html?url=", "/_#/", "/v2/?meetingjoin=true#", "/light-meetings/launch?coords=", "eyJ0ZW5hbnRJZCI6MX0=",
        "https://eur03.safelinks.protection.outlook.com/?url=", "https://www.google.com/url?q=", "https://urldefense.com/v3/__", "__;Kw!!A!B$",
        "https://urldefense.proofpoint.com/v2/url?u=https-3A__zoom.us_j_", "https://l.facebook.com/l.php?u=", ZOOM, TEAMS, MEET, "abc-defg-hij",
    ]
)  # fmt: skip
ANY_TEXT = st.lists(PIECES | st.text(max_size=8), max_size=14).map("".join) | st.text()
ALLOWED_HOSTS = re.compile(
    r"(.+\.)?(zoom\.us|zoom\.com|zoomgov\.com|zoom\.com\.cn|zoom-x\.de|zm\.page|teams\.microsoft\.(com|us)|webex\.com|gotomeeting\.com"
    r"|gotowebinar\.com|gotomeet\.me|whereby\.com|bluejeans\.com|daily\.co)|meet\.google\.com|g\.co|hangouts\.google\.com"
    r"|teams\.live\.com|teams\.cloud\.microsoft|meet\.goto\.com|8x8\.vc|(app\.)?chime\.aws|app\.slack\.com|(v|meetings)\.ringcentral\.com"
    r"|discord\.gg|facetime\.apple\.com|meet\.livekit\.io|app\.cal\.com|meet\.jit\.si|visio\.(numerique\.gouv\.fr|lasuite\.coop|suite\.anct\.gouv\.fr)"
)


@settings(max_examples=600, deadline=None)
@given(text=ANY_TEXT)
@example(text="https://zoom.us/j/81234567890?pwd=\ud800")
@example(text="https://\u0130.zoom.us/j/81234567890")
@example(text="https://urldefense.com/v3/__https://zoom.us/*__;\u0130!")
def test_any_text_gives_a_link_of_an_allowed_host_or_none(text: str) -> None:
    found = find_meeting_link(conference=[text], location=text, description=text, title=text)
    links = [candidate.link for candidate in find_all_links(text, scheme_less=True)]
    assert any(link and link.is_supported for link in links) == bool(found and found.is_supported)
    for link in filter(None, [found, parse_meeting_url(text), *links]):
        parts = urlsplit(link.url)
        assert parts.scheme == "https"
        assert parts.netloc == parts.hostname, "no user name, no port"
        assert ALLOWED_HOSTS.fullmatch(parts.netloc)
        assert re.fullmatch(r"[!-~]+", link.url), "nothing but printable ASCII"
        assert len(link.url) <= 4096
        assert "zak" not in dict(pair.partition("=")[::2] for pair in parts.query.lower().split("&"))
        assert link.meeting_id.isprintable()


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_can_be_redacted(text: str) -> None:
    once = redact(text)
    assert redact(once) == once
