"""Links inside the wrappers of mail filters and search engines."""

import pytest

from app.meeting_links.extract import (
    find_meeting_link,
    parse_meeting_url,
)
from app.meeting_links.urls import Inner, Url, split_url
from app.meeting_links.wrappers import unwrap
from tests.unit.meeting_links.links import MEET, TEAMS, TEAMS_SHORT, ZOOM, enc, safe_link

# --- wrappers: (wrapped, inside)

WRAPPED = [
    (safe_link(TEAMS_SHORT), TEAMS_SHORT),
    (safe_link(ZOOM).replace("&", "&amp;"), ZOOM),
    (f"https://nam02.safelinks.protection.office365.us/?url={enc(ZOOM)}&reserved=0", ZOOM),
    (f"https://gbr01.safelinks.protection.outlook.com/ap/t-59584e83/?url={enc(TEAMS)}&data=05", TEAMS),
    (f"https://eur03.safelinks.protection.outlook.com/GetUrlReputation?url={enc(MEET)}", MEET),
    (f"https://statics.teams.cdn.office.net/evergreen-assets/safelinks/1/atp-safelinks.html?url={enc(ZOOM)}&locale=fr-fr", ZOOM),
    (f"https://www.google.com/url?q={enc(ZOOM)}&sa=D&usg=x", ZOOM),
    (f"https://www.google.co.uk/url?sa=t&url={enc(MEET)}", MEET),
    (f"https://www.google.fr/url?q={MEET}", MEET),
    (f"https://urldefense.proofpoint.com/v1/url?u={enc('https://zoom.us/w/81234567890?pwd=a&#38;tk=b')}&k=x", "https://zoom.us/w/81234567890?pwd=a&tk=b"),
    ("https://urldefense.proofpoint.com/v2/url?u=https-3A__zoom.us_j_81234567890-3Fpwd-3DAbC123&d=DwMF&c=x", "https://zoom.us/j/81234567890?pwd=AbC123"),
    ("https://urldefense.proofpoint.com/v2/url?u=https-3A__zoom.us_w_81234567890-3Fpwd-3Da-26amp-3Btk-3Db&c=x", "https://zoom.us/w/81234567890?pwd=a&tk=b"),
    ("https://urldefense.com/v3/__https://zoom.us/j/81234567890?pwd=AbC__;!!AbC!xyz$", "https://zoom.us/j/81234567890?pwd=AbC"),
    ("https://urldefense.us/v3/__https:/zoom.us/j/81234567890?pwd=AbC__;!!AbC!xyz$", "https://zoom.us/j/81234567890?pwd=AbC"),
    ("https://urldefense.com/v3/__https://meet.jit.si/a*b__;Kw!!AbC!xyz$", "https://meet.jit.si/a+b"),
    (f"https://l.facebook.com/l.php?u={enc(ZOOM)}&h=AT0", ZOOM),
    (f"https://l.messenger.com/l.php?u={enc(ZOOM)}&h=AT0", ZOOM),
    (f"https://slack-redir.net/link?url={enc(ZOOM)}", ZOOM),
    (f"https://linkprotect.cudasvc.com/url?a={enc(ZOOM)}&c=E,1,x", ZOOM),
    (safe_link(f"https://www.google.com/url?q={enc(ZOOM)}"), ZOOM),
    (safe_link("https://teams.microsoft.com/v2/?meetingjoin=true#/meet/2345678901234?p=AbCdEf"), TEAMS_SHORT),
    (safe_link(safe_link(safe_link(safe_link(safe_link("https://meet.jit.si/deep"))))), "https://meet.jit.si/deep"),
    (enc(safe_link(ZOOM)), ZOOM),
    (safe_link("https://zoom.us/w/81234567890?tk=a&amp;pwd=b"), "https://zoom.us/w/81234567890?tk=a&pwd=b"),
]  # fmt: skip


# Wrapped links that are about the unwrapping alone, and one for each way of counting R.
UNWRAPPED = [
    ("https://urldefense.com/v3/__https://google.com:443/search?q=a*test&gs=ps__;Kw!-612Flbf0JvQ3kNJkRi5Jg!Ue6t$", "https://google.com:443/search?q=a+test&gs=ps"),
    ("https://urldefense.com/v3/__https://example.test/a*b*c__;IyU!!AbC!xyz$", "https://example.test/a#b%c"),
    ("https://urldefense.com/v3/__https:/example.test/a**Ab__;JSM!!AbC!xyz$", "https://example.test/a%#b"),
    ("https://urldefense.com/v3/__https://example.test/a#x*b__;Kw!!AbC!xyz$", "https://example.test/a#x+b"),
    # "é+" is three bytes and two characters
    ("https://urldefense.com/v3/__https://example.test/**Ax*__;w6kr!!AbC!xyz$", "https://example.test/éx+"),
    ("https://urldefense.com/v3/__https://example.test/**A__;w6kr!!AbC!xyz$", "https://example.test/é+"),
    ("https://urldefense.com/v3/__https://example.test/**B__;Kys!!AbC!xyz$", ""),
]  # fmt: skip


@pytest.mark.parametrize(("wrapped", "inside"), WRAPPED)
def test_a_wrapper_is_taken_off(wrapped: str, inside: str) -> None:
    link = find_meeting_link(description=wrapped)
    assert link == parse_meeting_url(inside)
    assert link is not None
    assert link.url == inside


@pytest.mark.parametrize(("wrapped", "inside"), UNWRAPPED)
def test_url_defense_v3_is_decoded_as_in_the_vectors(wrapped: str, inside: str) -> None:
    parts = split_url(wrapped)
    assert isinstance(parts, Url)
    outcome = unwrap(parts)
    assert outcome == Inner(inside) if inside else not isinstance(outcome, Inner)
