"""What the RSVP page shows, for each state of the event and the guest."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.hosted.components import Attendee, EventComponent, instance_from_series
from app.hosted.service import LoadedEvent, LocalCalendar
from app.invitations.links import Subject
from app.rsvp.page import EXPIRES_AFTER, page_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BOB = Attendee(email="bob@example.org", name="Bob")
EVENT = EventComponent(
    uid="u",
    name="n",
    start=NOW + timedelta(days=1),
    end=NOW + timedelta(days=1, hours=1),
    timezone="UTC",
    attendees=(BOB,),
)
SERIES = replace(EVENT, rrule="FREQ=DAILY;COUNT=3")
KEY = "20261126T120000Z"
INSTANCE = instance_from_series(SERIES, datetime(2026, 11, 26, 12, tzinfo=UTC), KEY)
CALENDAR = LocalCalendar(
    calendar_id="cal_1",
    project_id="prj_1",
    owner_email="ada@example.com",
    owner_name="Ada",
    timezone="UTC",
    locale="en",
    identity=None,
    deduplication_key=None,
    metadata=None,
    state="connected",
    connection_failure_data=None,
    last_successful_sync_at=None,
    last_attempted_sync_at=None,
)


def kind_of(*components: EventComponent, key: str = "", email: str = "Bob@Example.org", **options) -> str:
    now = options.pop("now", NOW)
    event = LoadedEvent(CALENDAR, {one.recurrence_key: one for one in components}, **options)
    page = page_of(event, Subject("cal_1", "u", key, email), now=now)
    assert (page.invited is None) == (
        page.kind == "expired" or not event.find(key) or email == "eve@example.org"
    )
    return page.kind


@pytest.mark.parametrize("key", ["", KEY])
def test_a_guest_is_asked(key):
    assert kind_of(SERIES, key=key) == "ask"
    page = page_of(LoadedEvent(CALENDAR, {"": SERIES}), Subject("cal_1", "u", key, BOB.email), now=NOW)
    assert page.invited is not None
    assert (page.invited.component.recurrence_key, page.invited.attendee) == (key, BOB)
    assert page.invited.organizer.email == "ada@example.com"


def test_only_guests_are_asked():
    assert kind_of(EVENT, email="eve@example.org") == "not_invited"
    assert kind_of(replace(EVENT, is_cancelled=True), email="eve@example.org") == "not_invited"


def test_what_is_cancelled_is_not_asked_about():
    assert page_of(None, Subject("cal_1", "u", "", BOB.email), now=NOW).kind == "cancelled"
    assert kind_of(replace(EVENT, is_cancelled=True)) == "cancelled"
    assert kind_of(replace(SERIES, is_cancelled=True), key=KEY) == "cancelled"
    assert kind_of(SERIES, replace(INSTANCE, is_cancelled=True), key=KEY) == "cancelled"
    assert kind_of(SERIES, replace(INSTANCE, is_cancelled=True)) == "ask"
    assert kind_of(SERIES, key="20261130T120000Z") == "cancelled"
    assert kind_of(SERIES, has_instances=False) == "cancelled"


def test_what_is_over_is_not_asked_about():
    assert kind_of(EVENT, now=EVENT.end - timedelta(seconds=1)) == "ask"
    assert kind_of(EVENT, now=EVENT.end) == "over"
    assert kind_of(SERIES, now=EVENT.end) == "ask"
    assert kind_of(EVENT, now=EVENT.end + EXPIRES_AFTER - timedelta(seconds=1)) == "over"
    assert kind_of(EVENT, now=EVENT.end + EXPIRES_AFTER) == "expired"
    assert kind_of(EVENT, now=EVENT.end + EXPIRES_AFTER, email="eve@example.org") == "expired"
