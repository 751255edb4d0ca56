"""Changed events as `include_events` webhooks state them."""

from dataclasses import replace
from typing import Any

import pytest

from app.events.changes import describe_changes
from app.events.data import RemoteEvent
from app.events.diff import EventWrite
from app.events.fields import stated_values
from app.webhooks.openapi import ChangedEventData

OLD = RemoteEvent(platform_uuid="a", raw="{}", name="Weekly", attendees=())


def describe(new: RemoteEvent, stored: dict[str, Any]):
    write = EventWrite(new, b"", is_deleted=False, change="updated", stored_id="evt_1")
    (changed,) = describe_changes([write], ["evt_1"], [], {"evt_1": stored})
    return changed


def row(event: RemoteEvent, **columns: Any) -> dict[str, Any]:
    return {**stated_values(event), "is_deleted": False, **columns}


@pytest.mark.parametrize(("name", "value"), [("busy_status", "free"), ("visibility", "private")])
def test_a_change_of_the_words_is_stated(name: str, value: Any) -> None:
    fields: dict[str, Any] = {name: value}
    changed = describe(replace(OLD, **fields), row(OLD))
    assert changed.changed_fields == {name: (getattr(OLD, name), value)}
    assert changed.event[name] == value


def test_a_row_from_before_the_columns_shows_no_change_of_them() -> None:
    new = replace(OLD, name="Monthly", busy_status="free", visibility="private")
    changed = describe(new, row(OLD, busy_status=None, visibility=None))
    assert changed.changed_fields == {"name": ("Weekly", "Monthly")}
    assert (changed.event["busy_status"], changed.event["visibility"]) == ("free", "private")


def test_a_deleted_event_from_before_the_columns_has_the_defaults() -> None:
    stored = row(OLD, busy_status=None, visibility=None)
    (changed,) = describe_changes([], [], ["evt_1"], {"evt_1": stored})
    assert changed.changed_fields == {"is_deleted": (False, True)}
    body = {**changed.event, "change": changed.change, "changed_fields": {}}
    shown = ChangedEventData.model_validate(body)
    assert (shown.busy_status, shown.visibility) == ("busy", "default")
