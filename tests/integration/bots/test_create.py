"""`POST /bots`: bots of events and bots by hand, and the meetings that are refused."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from app.models import Bot, Calendar, CalendarEvent
from tests.integration.bots.bots_api import FIELDS, LINK, URL, by_hand, create, in_hours


async def test_a_bot_of_an_event_has_the_events_link_and_start(api, add_event) -> None:
    start = in_hours(3)
    event_id = await add_event(start_time=start, end_time=start + timedelta(hours=1))
    response = await api.post(
        URL,
        json={
            "calendar_event_id": event_id,
            "bot_name": "Notetaker",
            "metadata": {"user": "1"},
            "deduplication_key": event_id,
            "meeting_url": None,
            "join_at": None,
        },
    )
    assert response.status_code == 201
    bot = response.json()
    assert set(bot) == FIELDS
    assert bot["meeting_url"] == LINK
    assert bot["join_at"] == isoformat(start)
    assert bot["state"] == "scheduled"
    assert bot["calendar_event_id"] == event_id
    assert bot["metadata"] == {"user": "1"}
    assert [entry["type"] for entry in bot["events"]] == ["scheduled"]
    assert (await api.get(f"{URL}/{bot['id']}")).json() == bot


async def test_a_bot_by_hand_needs_a_link_and_a_time(api) -> None:
    at = in_hours(5)
    bot = await create(api, join_at=(at + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00"))
    assert bot["join_at"] == isoformat(at)
    assert bot["calendar_event_id"] is None
    for missing in ("meeting_url", "bot_name"):
        body = by_hand()
        del body[missing]
        response = await api.post(URL, json=body)
        assert response.status_code == 400
        assert list(response.json()) == [missing]
    response = await api.post(URL, json={"bot_name": "x"})
    assert response.json() == {"non_field_errors": ["Give calendar_event_id, or meeting_url and join_at."]}


async def test_a_bot_of_an_event_takes_neither_link_nor_time(api, add_event) -> None:
    event_id = await add_event()
    response = await api.post(URL, json=by_hand(calendar_event_id=event_id))
    assert response.status_code == 400
    assert set(response.json()) == {"meeting_url", "join_at"}
    response = await api.post(
        URL, json={"bot_name": "x", "calendar_event_id": event_id, "join_at": isoformat(in_hours(1))}
    )
    assert set(response.json()) == {"join_at"}


async def test_events_that_no_bot_can_join_are_refused(api, add_event) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"meeting_url": None}, "no meeting URL"),
        ({"is_deleted": True}, "deleted"),
        ({"start_time": in_hours(-2), "end_time": in_hours(-1)}, "over"),
        ({"start_time": in_hours(-20), "end_time": None}, "over"),
        ({"start_time": None, "end_time": None}, "starts"),
    ]
    for fields, word in cases:
        event_id = await add_event(**fields)
        response = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
        assert response.status_code == 400
        assert word in response.json()["calendar_event_id"][0]


async def test_a_bot_can_still_join_an_event_that_is_under_way(api, add_event) -> None:
    event_id = await add_event(start_time=in_hours(-1), end_time=in_hours(1))
    response = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
    assert response.status_code == 201


async def test_no_bot_is_scheduled_on_a_disconnected_calendar(api, add_event, sessions) -> None:
    event_id = await add_event()
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).values(state="disconnected"))
    response = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
    assert response.status_code == 400
    assert "disconnected" in response.json()["calendar_event_id"][0]


async def test_bad_fields_are_named(api) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"bot_name": " "}, "bot_name"),
        ({"bot_name": True}, "bot_name"),
        ({"bot_name": "x" * 256}, "bot_name"),
        ({"meeting_url": "zoom.us/j/1"}, "meeting_url"),
        ({"meeting_url": "ftp://zoom.us/j/1"}, "meeting_url"),
        ({"meeting_url": "https://"}, "meeting_url"),
        ({"meeting_url": "https://zoom.us/a b"}, "meeting_url"),
        ({"meeting_url": "https://zoom.us/\nx"}, "meeting_url"),
        ({"meeting_url": "https://[bad"}, "meeting_url"),
        ({"meeting_url": "https://zoom.us/" + "x" * 4096}, "meeting_url"),
        ({"join_at": "soon"}, "join_at"),
        ({"join_at": isoformat(in_hours(-0.1))}, "join_at"),
        ({"join_at": 17}, "join_at"),
        ({"metadata": {}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"deduplication_key": True}, "deduplication_key"),
        ({"bot_settings": []}, "bot_settings"),
        ({"recording_settings": {"a": "\x00"}}, "recording_settings"),
    ]
    for fields, field in cases:
        response = await api.post(URL, json=by_hand(**fields))
        assert response.status_code == 400, fields
        assert list(response.json()) == [field], fields


async def test_a_time_that_has_just_passed_is_fine(api) -> None:
    await create(api, join_at=isoformat(utcnow() - timedelta(seconds=30)))


async def test_further_fields_are_kept_and_never_shown(api, sessions) -> None:
    bot = await create(
        api,
        bot_settings={"a": 1, "recording_settings": {"format": "mp3"}},
        recording_settings={"format": "mp4"},
        transcription_settings=None,
    )
    assert set(bot) == FIELDS
    async with sessions() as session:
        kept = await session.scalar(select(Bot.bot_settings))
    assert kept == {"a": 1, "recording_settings": {"format": "mp4"}}


async def test_a_bot_waits_for_a_sync_that_is_changing_its_event(api, add_event, sessions) -> None:
    event_id = await add_event()
    moved = in_hours(48)
    async with transaction(sessions) as session:
        await session.execute(text("SELECT FROM calendars FOR NO KEY UPDATE"))
        creating = asyncio.create_task(api.post(URL, json={"calendar_event_id": event_id, "bot_name": "x"}))
        await asyncio.sleep(0.2)
        assert not creating.done()
        await session.execute(update(CalendarEvent).values(start_time=moved, end_time=in_hours(49)))
    assert (await creating).json()["join_at"] == isoformat(moved)


async def test_without_a_time_a_bot_joins_now(api, sessions) -> None:
    before = utcnow() - timedelta(seconds=5)
    body = by_hand()
    del body["join_at"]
    bot = (await api.post(URL, json=body)).json()
    assert isoformat(before) < bot["join_at"] < isoformat(utcnow() + timedelta(seconds=5))
    response = await api.post(URL, json=by_hand(join_at=""))
    assert list(response.json()) == ["join_at"], "an empty time is a slip"


async def test_empty_texts_count_as_absent(api, add_event) -> None:
    event_id = await add_event()
    bot = await create(api, calendar_event_id=event_id, meeting_url="", join_at="", deduplication_key=" ")
    assert (bot["calendar_event_id"], bot["deduplication_key"]) == (event_id, None)
    assert (await create(api, calendar_event_id=""))["calendar_event_id"] is None
    changed = await api.patch(
        f"{URL}/{bot['id']}", json={"meeting_url": "", "join_at": "", "calendar_event_id": event_id}
    )
    assert changed.json() == bot


async def test_numbers_become_texts_and_texts_are_trimmed(api) -> None:
    bot = await create(api, bot_name=42, deduplication_key=42)
    assert (bot["bot_name"], bot["deduplication_key"]) == ("42", "42")
    response = await api.post(URL, json=by_hand(deduplication_key=" 42 "))
    assert list(response.json()) == ["deduplication_key"], "the same key"
    other = await create(api, bot_name="  Ada ", meeting_url=f" {LINK} ")
    assert (other["bot_name"], other["meeting_url"]) == ("Ada", LINK)


async def test_a_meeting_that_the_runner_cannot_join_is_refused(api, add_event) -> None:
    refused = (
        "https://acme.webex.com/meet/ada",
        "https://meet.example.com/x",
        "https://zoom.us.example.com/j/1",
    )
    for url in refused:
        response = await api.post(URL, json=by_hand(meeting_url=url))
        assert response.status_code == 400, url
        assert "google_meet, teams, zoom" in response.json()["meeting_url"][0]
        event_id = await add_event(meeting_url=url)
        response = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
        assert "google_meet, teams, zoom" in response.json()["calendar_event_id"][0]
    # The host decides: Attendee joins codes of any form.
    for url in (
        "https://meet.google.com/abc-def-ghi",
        "https://acme.zoom.us/j/12345",
        "https://teams.live.com/meet/123456789",
    ):
        bot = await create(api, meeting_url=url)
        response = await api.patch(f"{URL}/{bot['id']}", json={"meeting_url": refused[0]})
        assert list(response.json()) == ["meeting_url"]


@pytest.mark.settings(bot_runner_platforms="Webex")
async def test_the_operator_says_what_the_runner_joins(api) -> None:
    await create(api, meeting_url="https://acme.webex.com/meet/ada")
    response = await api.post(URL, json=by_hand())
    assert response.json()["meeting_url"][0].endswith("it joins webex (BOT_RUNNER_PLATFORMS).")


async def test_what_the_runner_refuses_is_refused_or_left_out_at_once(api, sessions) -> None:
    response = await api.post(URL, json=by_hand(bot_name="Ada \U0001f916"))
    assert "emoji" in response.json()["bot_name"][0]
    await create(
        api,
        bot_settings={"a": None, "b": {"c": None, "d": 0, "e": {}}},
        recording_settings={"f": [{"g": None, "h": False}]},
        automatic_leave_settings=None,
    )
    async with sessions() as session:
        kept = await session.scalar(select(Bot.bot_settings))
    assert kept == {"b": {"d": 0, "e": {}}, "recording_settings": {"f": [{"h": False}]}}
    for fields in ({"bot_settings": {"a": [None]}}, {"recording_settings": {"a": {"b": [[None]]}}}):
        response = await api.post(URL, json=by_hand(**fields))
        assert list(response.json()) == list(fields), response.text
