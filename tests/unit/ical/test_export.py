"""Exported events say how their time counts, and who may see them."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from app.events.data import BusyStatus, Visibility
from app.ical.components import normalize, split
from app.ical.export import ExportedEvent, export_event
from app.providers.ics.events import Reader

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def export(**fields: str) -> bytes:
    return export_event(
        ExportedEvent(
            uid="a", start_time=NOW, end_time=NOW + timedelta(hours=1), is_all_day=False, timezone="UTC",
            original_start_time=None, is_cancelled=False, name="Weekly", description=None, location=None, url=None,
            organizer=None, attendees=[], created_at=NOW, updated_at=NOW, **fields,
        )
    )  # fmt: skip


@pytest.mark.parametrize("busy_status", get_args(BusyStatus))
@pytest.mark.parametrize("visibility", get_args(Visibility))
def test_a_feed_of_an_exported_event_gives_the_same(busy_status: str, visibility: str) -> None:
    text = export(busy_status=busy_status, visibility=visibility)
    event = Reader().describe(next(split(normalize(text))), "a")
    assert (event.busy_status, event.visibility) == (busy_status, visibility)


@pytest.mark.parametrize("busy_status", ["free", "working_elsewhere", "tentative", "out_of_office"])
def test_programs_that_know_only_transp_see_whether_the_time_is_taken(busy_status: str) -> None:
    is_transparent = b"TRANSP:TRANSPARENT\r\n" in export(busy_status=busy_status)
    assert is_transparent == (busy_status in {"free", "working_elsewhere"})


def test_an_ordinary_event_has_none_of_these_properties() -> None:
    text = export()
    assert not [name for name in (b"TRANSP", b"BUSYSTATUS", b"CLASS") if name in text]
