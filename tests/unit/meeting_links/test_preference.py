"""The choice between several links of one event."""

from typing import Any

import pytest

from app.meeting_links.extract import (
    MeetingHosts,
    find_meeting_link,
    parse_meeting_url,
)
from tests.unit.meeting_links.links import MEET, TEAMS_SHORT, ZOOM

# --- which of several links


def test_conference_goes_before_location_before_description_before_title() -> None:
    sources: dict[str, Any] = {
        "conference": ["https://meet.jit.si/one"],
        "location": "https://meet.jit.si/two",
        "description": "https://meet.jit.si/three",
        "title": "https://meet.jit.si/four",
    }
    order = []
    while found := find_meeting_link(**sources):
        order.append(found.url.rpartition("/")[2])
        del sources[next(iter(sources))]
    assert order == ["one", "two", "three", "four"]


def test_a_supported_link_goes_before_a_recognised_one_of_an_earlier_field() -> None:
    found = find_meeting_link(
        conference=["https://bluejeans.com/123456789"], location="https://discord.gg/abc", title=ZOOM
    )
    assert found is not None
    assert found.url == ZOOM


def test_a_recognised_link_is_better_than_none_and_the_first_counts() -> None:
    found = find_meeting_link(
        conference=["tel:+15550100", "https://bluejeans.com/123456789"], description="https://discord.gg/abc"
    )
    assert found is not None
    assert (found.platform, found.is_supported) == ("bluejeans", False)


@pytest.mark.parametrize(
    ("structured", "platform"),
    [
        ({"conference": ["teamsForBusiness"]}, "teams"),
        ({"conference": ["hangoutsMeet"]}, "google_meet"),
        ({"conference": ["Zoom Meeting"]}, "zoom"),
        ({"location": "Microsoft Teams Meeting"}, "teams"),
        ({"location": "Visioconférence Teams"}, "teams"),
        ({"location": "https://teams.microsoft.com/meetingOptions/?x=1"}, "teams"),
        ({"conference": ["hangoutsMeet"], "location": "Zoom"}, "google_meet"),
        ({"location": "Room 4"}, "webex"),
        ({}, "webex"),
        ({"location": "GoTo Meeting"}, "webex"),
        ({"conference": ["https://bluejeans.com/123456789"]}, "webex"),
    ],
)
def test_in_a_text_the_service_that_the_structured_fields_name_goes_first(
    structured: dict[str, Any], platform: str
) -> None:
    text = f"https://acme.webex.com/meet/ada (my room), {ZOOM}, {MEET} or {TEAMS_SHORT}"
    found = find_meeting_link(**structured, description=text)
    assert found is not None
    assert found.platform == platform


@pytest.mark.parametrize(
    ("url", "platform"),
    [
        ("https://teams.microsoft.com/meet/234567890?p=x", "teams"),
        ("https://teams.microsoft.com/l/meetup-join/a/b?c=1#d", "teams"),
        ("https://meet.google.com/abc-def-hij", "google_meet"),
        ("https://zoom.us/j/12345", "zoom"),
        ("https://us02web.zoom.us/j/123456789012?pwd=x", "zoom"),
        ("https://acme.webex.com/acme/some/new/form?id=1", "webex"),
    ],
)
def test_a_providers_own_join_url_counts_by_its_host(url: str, platform: str) -> None:
    found = find_meeting_link(join_urls=["", "no link", url], location=ZOOM)
    assert found is not None
    assert (found.url, found.platform, found.is_supported) == (url, platform, True)
    assert find_meeting_link(conference=[url], location=url, description=url, title=url) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://zoom.us/",
        "https://zoom.us/meeting/register/abc",
        "https://zoom.us/u/abc",
        "https://zoom.us.evil.example/j/12345",
        "https://evil.example/j/123456789",
        "https://ada@zoom.us/j/12345",
        "https://zoom.us:99/j/12345",
        "https://tel.meet/abc-def-hij",
        "https://stream.meet.google.com/stream/x",
        "zoommtg://zoom.us/12345",
        "javascript:alert(1)",
        "see https://zoom.us/j/12345 here",
        "https://zoom.us/j/" + "1" * 5000,
        "\ud800",
        # Pages of the services that redirect to any address they are given.
        "https://meet.google.com/linkredirect?dest=https://evil.example/j/1",
        "https://meet.google.com/linkredirect?dest=https%3A%2F%2Fevil.example",
        "https://zoom.us/signin?next=%252F%252Fevil.example",
        "https://acme.webex.com/redirect#/to=//evil.example",
        "https://zoom.us/open/https:%5C%5Cevil.example",
        "https://g.co/abc",
    ],
)
def test_a_join_url_on_another_host_or_to_no_meeting_does_not_count(url: str) -> None:
    assert find_meeting_link(join_urls=[url]) is None


def test_a_join_url_shows_no_host_key() -> None:
    found = find_meeting_link(join_urls=["https://zoom.us/j/12345?zak=key&pwd=p&uname=Ada"])
    assert found is not None
    assert found.url == "https://zoom.us/j/12345?pwd=p"


WEBEX_ROOM = "https://acme.webex.com/meet/ada"
RUNNER = MeetingHosts(preferred=frozenset({"zoom", "google_meet", "teams"}))


@pytest.mark.parametrize(
    ("texts", "url"),
    [
        ({"location": WEBEX_ROOM, "description": f"or {ZOOM}"}, ZOOM),
        ({"description": f"{WEBEX_ROOM} or {ZOOM}"}, ZOOM),
        ({"join_urls": [WEBEX_ROOM], "location": MEET}, MEET),
        ({"location": "Webex", "description": f"{WEBEX_ROOM} or {ZOOM} or {MEET}"}, ZOOM),
        ({"location": "Google Meet", "description": f"{WEBEX_ROOM} or {ZOOM} or {MEET}"}, MEET),
        ({"location": WEBEX_ROOM, "description": "https://discord.gg/abc"}, WEBEX_ROOM),
        ({"location": WEBEX_ROOM, "description": "https://whereby.com/ada"}, WEBEX_ROOM),
        ({"location": ZOOM, "description": MEET}, ZOOM),
        ({"location": "https://discord.gg/abc", "description": WEBEX_ROOM}, WEBEX_ROOM),
    ],
)
def test_of_several_links_one_that_the_runner_can_join_goes_first(texts: Any, url: str) -> None:
    found = find_meeting_link(**texts, hosts=RUNNER)
    assert found is not None
    assert found.url == url


def test_without_a_runner_to_prefer_the_first_link_counts() -> None:
    found = find_meeting_link(location=WEBEX_ROOM, description=ZOOM)
    assert found is not None
    assert found.url == WEBEX_ROOM


def test_in_a_text_any_supported_link_goes_before_a_recognised_one() -> None:
    found = find_meeting_link(location="Webex", description=f"https://discord.gg/abc or {ZOOM}")
    assert found is not None
    assert found.url == ZOOM


@pytest.mark.parametrize("text", ["", " ", "Room 4", f"{ZOOM} Passcode: 1", f"{ZOOM} {ZOOM}"])
def test_what_is_not_one_link_is_not_parsed_as_one(text: str) -> None:
    assert parse_meeting_url(text) is None
