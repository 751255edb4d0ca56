"""The fields of an event: the table, `RemoteEvent`, the API and the content hash agree."""

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from app.api import fields as api_fields
from app.api.fields import AttendeeRead, OrganizerRead
from app.calendar_events.repository import JSON_TEXTS, TIMES
from app.calendar_events.schemas import CalendarEventRead
from app.events.data import (
    BusyStatus,
    RemoteAttendee,
    RemoteEvent,
    RemoteOrganizer,
    ResponseStatus,
    Visibility,
)
from app.events.derived import Derived
from app.events.diff import content_hash
from app.events.fields import EVENT_FIELDS, NOTIFIED_FIELDS, EventField, stored_values
from app.models import CalendarEvent
from app.webhooks.openapi import ChangedEventData

SAMPLE = RemoteEvent(
    platform_uuid="7kukuqrfedlm2f9t_20261124T090000Z",
    raw='{"id":"7kukuqrfedlm2f9t_20261124T090000Z","etag":"2"}',
    start_time=datetime(2026, 11, 24, 9, tzinfo=UTC),
    end_time=datetime(2026, 11, 24, 10, 30, tzinfo=UTC),
    is_all_day=False,
    timezone="Europe/Berlin",
    name="Planning · Q1",
    description="Bring <b>numbers</b>.",
    location="Room 4",
    ical_uid="7kukuqrfedlm2f9t@google.com",
    organizer=RemoteOrganizer("ada@example.com", "Ada Lovelace"),
    attendees=(
        RemoteAttendee("ada@example.com", "Ada Lovelace", "accepted", is_organizer=True),
        RemoteAttendee("room4@example.com", None, is_optional=True, is_resource=True),
    ),
    response_status="tentative",
    recurring_event_id="7kukuqrfedlm2f9t",
    original_start_time=datetime(2026, 11, 24, 8, tzinfo=UTC),
    meeting_url="https://meet.google.com/abc-defg-hij",
    meeting_platform="google_meet",
)


def test_the_hash_of_stored_events_stays() -> None:
    """If it changes, every stored event counts as changed at its next sync."""
    assert content_hash(SAMPLE).hex() == "7bbc61e9c652b007e5b1fbe17927667d"
    assert content_hash(RemoteEvent(platform_uuid="a", raw="{}")).hex() == "32d852b5d94ae1e0aa7cfb9c40ec08ec"


def test_the_table_has_a_column_for_each_field_and_a_few_of_its_own() -> None:
    own = {"id", "project_id", "calendar_id", "content_hash", "is_deleted", "created_at", "updated_at"}
    declared = {field.name for field in fields(RemoteEvent)} - {"is_cancelled", "is_raw_cut"}
    assert {field.name for field in EVENT_FIELDS} == declared
    assert {column.name for column in CalendarEvent.__table__.columns} == declared | own


def test_the_api_shows_every_column_but_the_internal_ones() -> None:
    columns = {column.name for column in CalendarEvent.__table__.columns}
    assert set(CalendarEventRead.model_fields) == columns - {"project_id", "content_hash"} | {"bots"}
    assert set(TIMES) == {"start_time", "end_time", "original_start_time", "created_at", "updated_at"}
    assert set(JSON_TEXTS) == {"organizer", "attendees", "raw"}


def test_webhooks_state_fields_that_are_there() -> None:
    stated = set(ChangedEventData.model_fields) - {"id", "change", "changed_fields"}
    assert stated == {*NOTIFIED_FIELDS, "is_deleted"}
    assert {field.name for field in EVENT_FIELDS} >= set(NOTIFIED_FIELDS)


def test_the_api_and_the_events_know_the_same_words() -> None:
    assert get_args(api_fields.BusyStatus) == get_args(BusyStatus)
    assert get_args(api_fields.Visibility) == get_args(Visibility)
    assert get_args(api_fields.ResponseStatus) == get_args(ResponseStatus)


OTHER: dict[str, Any] = {
    "BOOLEAN": True,
    "TEXT": "other",
    "TIMESTAMP WITH TIME ZONE": datetime(2026, 11, 24, 10, tzinfo=UTC),
}
OTHER_JSON: dict[str, Any] = {"raw": "{}", "organizer": None, "attendees": ()}


HASHED = [field for field in EVENT_FIELDS if field.name not in {"platform_uuid", *Derived._fields}]


@pytest.mark.parametrize("field", HASHED, ids=lambda field: field.name)
def test_every_field_of_its_own_moves_the_hash(field: EventField) -> None:
    other = OTHER_JSON[field.name] if field.is_json else OTHER[field.sql_type]
    assert content_hash(replace(SAMPLE, **{field.name: other})) != content_hash(SAMPLE)


@pytest.mark.parametrize(
    "fields",
    [{"busy_status": "free"}, {"visibility": "private"}, {"event_type": "birthday"}, {"etag": "2"}, {"is_raw_cut": True}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_what_is_read_from_raw_does_not_move_the_hash(fields: dict[str, Any]) -> None:
    """If it did, an upgrade from before these fields would announce every event that has them."""
    assert content_hash(replace(SAMPLE, **fields)) == content_hash(SAMPLE)


def test_json_is_written_as_the_api_shows_it() -> None:
    values = dict(zip((field.name for field in EVENT_FIELDS), stored_values(SAMPLE), strict=True))
    assert values["raw"] == SAMPLE.raw
    assert values["organizer"] == '{"email":"ada@example.com","name":"Ada Lovelace"}'
    assert values["attendees"] == (
        '[{"email":"ada@example.com","name":"Ada Lovelace","response_status":"accepted","is_organizer":true,'
        '"is_optional":false,"is_resource":false},'
        '{"email":"room4@example.com","name":null,"response_status":"needs_action","is_organizer":false,'
        '"is_optional":true,"is_resource":true}]'
    )
    assert list(OrganizerRead.model_fields) == list(json.loads(values["organizer"]))
    assert list(AttendeeRead.model_fields) == list(json.loads(values["attendees"])[0])
