"""POST /api/v1/meeting_urls/parse: what the extractor sees in a text."""

import pytest

URL = "/api/v1/meeting_urls/parse"
ZOOM = "https://zoom.us/j/5551112222?pwd=hidden-1"
SAFE_LINK = "https://eur01.safelinks.protection.outlook.com/?url=https%3A%2F%2Fzoom.us%2Fj%2F5551112222%3Fpwd%3Dhidden-1"


async def parse(api, text):
    response = await api.post(URL, json={"text": text})
    assert response.status_code == 200, response.text
    return response.json()


async def test_every_link_is_shown_with_what_became_of_it(api) -> None:
    text = f'<a href="{SAFE_LINK}">join</a> notes: https://example.com/notes https://zoom.us/webinar/register/WN_1'
    assert await parse(api, text) == {
        "meeting_url": ZOOM,
        "meeting_platform": "zoom",
        "candidates": [
            {"url": SAFE_LINK, "unwrapped": ZOOM, "platform": "zoom", "reason": None},
            {
                "url": "https://example.com/notes",
                "unwrapped": None,
                "platform": None,
                "reason": "example.com is not the host of a known meeting service.",
            },
            {
                "url": "https://zoom.us/webinar/register/WN_1",
                "unwrapped": None,
                "platform": None,
                "reason": "It is a registration page, which gives each person a link of their own.",
            },
        ],
    }


async def test_a_link_without_a_scheme_is_seen(api) -> None:
    seen = await parse(api, "Room 4 / meet.google.com/abc-defg-hij")
    assert seen["meeting_url"] == "https://meet.google.com/abc-defg-hij"
    assert seen["meeting_platform"] == "google_meet"


async def test_a_text_without_links_has_none(api) -> None:
    for text in ("", "call me", "\u200b", "http://"):
        seen = await parse(api, text)
        assert (seen["meeting_url"], seen["meeting_platform"]) == (None, None)


@pytest.mark.settings(meeting_url_visio_hosts="visio.example.org")
async def test_the_operators_own_hosts_count(api) -> None:
    seen = await parse(api, "https://visio.example.org/abc-defg-hij")
    assert seen["meeting_platform"] == "visio"


async def test_a_long_text_is_read_and_a_longer_one_refused(api) -> None:
    text = ZOOM + " " + "https://a.example/ " * 5000
    seen = await parse(api, text)
    assert len(text) < 100_000
    assert seen["meeting_url"] == ZOOM
    response = await api.post(URL, json={"text": "x" * 100_001})
    assert (response.status_code, response.json()) == (400, {"text": ["Longer than 100000 characters."]})


async def test_bad_bodies_are_named(api) -> None:
    for body, field in (
        ({}, "text"),
        ({"text": 1}, "text"),
        ({"text": "x", "url": "y"}, "url"),
        ({"text": "\x00"}, "text"),
    ):
        response = await api.post(URL, json=body)
        assert response.status_code == 400
        assert list(response.json()) == [field]


async def test_a_key_is_needed_and_the_text_is_not_logged(api, capsys) -> None:
    await parse(api, ZOOM)
    assert (await api.post(URL, json={"text": "x"}, headers={"Authorization": ""})).status_code == 401
    logged = "".join(capsys.readouterr())
    assert "/parse" in logged
    assert "hidden-1" not in logged
