"""Links in texts and locations, and the limit of what is read."""

import pytest

from app.meeting_links import extract
from app.meeting_links.extract import (
    find_all_links,
    find_meeting_link,
)
from tests.unit.meeting_links.links import MEET, TEAMS, TEAMS_SHORT, ZOOM, enc, safe_link

# --- texts: (text, the link's url)

TEXTS = [
    (f"Join at {ZOOM}.", ZOOM),
    (f"Join ({ZOOM}), please!", ZOOM),
    (f"Join:{MEET}; see you", MEET),
    (f"Microsoft Teams<{TEAMS_SHORT}>", TEAMS_SHORT),
    (f"Join the meeting now<{safe_link(TEAMS_SHORT)}>", TEAMS_SHORT),
    (f"[Join]({ZOOM})", ZOOM),
    (f"[{ZOOM}]({ZOOM})", ZOOM),
    (f"**{MEET}**", MEET),
    (f"<{ZOOM}|Join on Zoom>", ZOOM),
    (f"会議：{MEET}。よろしく", MEET),
    (f"« {MEET} »", MEET),
    (f"Rejoindre\u00a0: {MEET}\u00a0!", MEET),
    (f"{ZOOM}\\nPasscode: 1", ZOOM),
    ("https://zoom.us/j/81234567890\\?pwd\\=AbC", "https://zoom.us/j/81234567890?pwd=AbC"),
    (f"{ZOOM},https://zoom.us/j/99999999999", ZOOM),
    ("https://zoom.us/j/81234567890;Room 4", "https://zoom.us/j/81234567890"),
    ("Https://zoom.us/j/81234567890", "https://zoom.us/j/81234567890"),
    ("HTTPS://ZOOM.US/j/81234567890", "https://zoom.us/j/81234567890"),
    ("Open zoommtg://zoom.us/join?confno=81234567890 now", "https://zoom.us/j/81234567890"),
    (f"Copied: {enc(ZOOM)}", ZOOM),
    (f"Copied: {enc(ZOOM, 3)}", ZOOM),
    # HTML
    (f'<a href="{ZOOM}">Join</a>', ZOOM),
    (f"<A HREF='{ZOOM}'>Join</A>", ZOOM),
    (f'<a class="x" href = "{ZOOM}" target=_blank>Join</a>', ZOOM),
    (f"<a href={MEET}>Join</a>", MEET),
    (f'<a href="{ZOOM}">https://zoom.us/j/81234567890</a>', ZOOM),
    (f'<p>https://zoom.us/j/99999999999</p><a href="{ZOOM}">Join</a>', ZOOM),
    (f'<a href="https://evil.example/">{ZOOM}</a>', ZOOM),
    ('<a href="https://zoom.us/w/81234567890?tk=a&amp;pwd=b">Join</a>', "https://zoom.us/w/81234567890?tk=a&pwd=b"),
    ('<a href="https&#58;&#x2F;&#x2F;zoom.us/j/81234567890">Join</a>', "https://zoom.us/j/81234567890"),
    ('<a href="https://zoom.us/w/81234567890?tk=a&amp;amp;pwd=b.">Join</a>', "https://zoom.us/w/81234567890?tk=a&pwd=b."),
    (f"&lt;a href=&quot;{ZOOM}&quot;&gt;Join&lt;/a&gt;", ZOOM),
    (f"{ZOOM}&nbsp;now", ZOOM),
    (f"{ZOOM}<br/>Passcode: 1", ZOOM),
    ("https://zoom.us/j/8123<wbr>4567890", "https://zoom.us/j/81234567890"),
    ("https://zoom.us/j/8123&shy;456&#8203;7890", "https://zoom.us/j/81234567890"),
    (f'<a href="{safe_link(TEAMS).replace("&", "&amp;")}" originalsrc="{TEAMS}">Join</a>', TEAMS),
    # no entity of HTML, although `&reg` could be read as one
    ("https://zoom.us/w/81234567890?tk=a&region=eu&copy=1", "https://zoom.us/w/81234567890?tk=a&region=eu&copy=1"),
    # quoted-printable
    ("https://zoom.us/j/8123=\r\n4567890", "https://zoom.us/j/81234567890"),
    ("https://zoom.us/j/8123=\n456=\n7890?p=\r\nwd=3DAbC now", "https://zoom.us/j/81234567890?pwd=AbC"),
    ("https://zoom.us/j/81234567890?pwd=QWxh==\nMeeting ID: 1", "https://zoom.us/j/81234567890?pwd=QWxh=="),
    ("https://zoom.us/j/81234567890?pwd=QWxh=\r\nMeeting ID: 1", "https://zoom.us/j/81234567890?pwd=QWxh="),
    ("https://zoom.us/j/81234567890?x= now", "https://zoom.us/j/81234567890?x="),
    (f"https://example.org/?x=\n{ZOOM}", ZOOM),
    # blocks that calendars write
    ("-::~:~::~:~:~::~:~::-\nRejoindre la visio : https://visio.numerique.gouv.fr/abc-defg-hij\n-::~:~::-", "https://visio.numerique.gouv.fr/abc-defg-hij"),
    ("Join: https://acme.zoom.us/j/81234567890?pwd=x\nNumbers: https://acme.zoom.us/u/abc", "https://acme.zoom.us/j/81234567890?pwd=x"),
    (f"Need help? https://aka.ms/JoinTeamsMeeting\nDial in: https://dialin.teams.microsoft.com/1?id=2\nOptions: https://teams.microsoft.com/meetingOptions/?x=1\nJoin: {TEAMS}", TEAMS),
]  # fmt: skip


@pytest.mark.parametrize(("text", "url"), TEXTS)
def test_the_link_is_found_in_a_text(text: str, url: str) -> None:
    for found in (find_meeting_link(description=text), find_meeting_link(location=text)):
        assert found is not None
        assert found.url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No link here, just 50% more talk & a few <b>tags</b>; mail ada@zoom.us",
        "zoom.us/j/81234567890",  # without scheme only where a link is expected
        "https://",
        "http://%",
        "href=",
        "&#" + "9" * 5000 + ";://",
        "&#x110000;&#xD800;://",
        "mailto:ada@example.org tel:+15550100 sip:81234567890@zoomcrc.com",
    ],
)
def test_a_text_without_a_meeting_link_has_none(text: str) -> None:
    assert find_meeting_link(description=text, title=text) is None


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("zoom.us/j/81234567890?pwd=x", "https://zoom.us/j/81234567890?pwd=x"),
        ("Room 4, acme.zoom.us/j/81234567890", "https://acme.zoom.us/j/81234567890"),
        ("Zoom (zoom.us/j/81234567890)", "https://zoom.us/j/81234567890"),
        ("Lien de la réunion : visio.numerique.gouv.fr/abc-defg-hij.", "https://visio.numerique.gouv.fr/abc-defg-hij"),
        ("Rejoindre la visioconférence : https://visio.lasuite.coop/abc-defg-hij", "https://visio.lasuite.coop/abc-defg-hij"),
        ("Meet.Google.com/abc-defg-hij", MEET),
        ("Microsoft Teams Meeting; teams.microsoft.com/meet/2345678901234?p=x", "https://teams.microsoft.com/meet/2345678901234?p=x"),
    ],
)  # fmt: skip
def test_a_location_may_leave_out_the_scheme(location: str, url: str) -> None:
    found = find_meeting_link(location=location)
    assert found is not None
    assert found.url == url
    assert find_meeting_link(conference=[location]) == found


@pytest.mark.parametrize(
    "location",
    ["evil.example/?next=zoom.us/j/81234567890", "ada@zoom.us/j/81234567890", "notzoom.us/j/81234567890", "zoom.us", "1/2.5", "/j/81234567890"],
)  # fmt: skip
def test_a_location_that_only_looks_like_a_link_has_none(location: str) -> None:
    assert find_meeting_link(location=location) is None


# --- the debugging view


def test_every_link_of_a_text_is_reported_with_what_became_of_it() -> None:
    text = (
        f'<a href="{safe_link(ZOOM).replace("&", "&amp;")}">Join</a> https://example.org/agenda'
        f" {safe_link('https://example.org/inside')} https://discord.gg/abc https://example.org/agenda"
    )
    seen = find_all_links(text)
    assert [candidate.url for candidate in seen] == [
        safe_link(ZOOM),
        "https://example.org/agenda",
        safe_link("https://example.org/inside"),
        "https://discord.gg/abc",
    ]
    assert [candidate.unwrapped_url for candidate in seen] == [ZOOM, None, "https://example.org/inside", None]
    assert [candidate.link.platform if candidate.link else None for candidate in seen] == [
        "zoom",
        None,
        None,
        "discord",
    ]
    assert seen[0].reason is None
    assert seen[1].reason == seen[2].reason == "example.org is not the host of a known meeting service."


def test_links_without_a_scheme_are_reported_on_request() -> None:
    assert find_all_links("see zoom.us/j/81234567890") == []
    (candidate,) = find_all_links("see zoom.us/j/81234567890", scheme_less=True)
    assert candidate.link is not None


# --- limits


def test_what_follows_the_first_100_000_characters_is_not_looked_at() -> None:
    assert find_meeting_link(description="x " * 50_000 + ZOOM) is None
    assert find_meeting_link(description="x " * 49_000 + ZOOM) is not None


def test_a_link_that_the_cap_cuts_in_two_is_not_taken() -> None:
    url = "https://zoom.us/j/12345678901?pwd=AbCdEfG"
    for written in (url, url.removeprefix("https://")):
        for missing in (1, 10, 13, 20):
            text = " " * (extract.MAX_TEXT_LENGTH - len(written) + missing)
            assert find_meeting_link(location=text + written) is None
            assert find_meeting_link(location=text[missing:] + written) is not None
    text = " " * (extract.MAX_TEXT_LENGTH - 30)
    assert find_meeting_link(description=f'{text}href="{url}"') is None
