"""What app/ical/ writes down for itself, because it imports nothing of the application, agrees with app/events/."""

from typing import get_args

from app.events import limits
from app.events.data import ResponseStatus
from app.ical.event_times import MAX_UID_BYTES
from app.ical.participation import PARTSTATS, ParticipationStatus, parse_partstat


def test_participation_statuses_are_those_of_events():
    assert set(PARTSTATS) == set(get_args(ParticipationStatus)) == set(get_args(ResponseStatus))
    assert {parse_partstat(partstat.value.lower()) for partstat in PARTSTATS.values()} == set(PARTSTATS)


def test_the_id_of_an_instance_can_be_stored():
    assert MAX_UID_BYTES + len("_20261124T090000Z") <= limits.PLATFORM_UUID
