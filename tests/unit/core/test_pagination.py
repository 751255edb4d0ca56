"""Cursors and pages, without a database; the walks over real rows are in tests/integration."""

import base64
import contextlib
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import BadQuery
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.models.calendar_event import CalendarEvent, start_or_last

EVENT = CalendarEvent.__table__.c
AT = datetime(2026, 1, 1, 12, 30, 0, 5, tzinfo=UTC)
UPDATED = Ordering("updated_at", EVENT.updated_at, EVENT.id, descending=False)
STARTED = Ordering("-start_time", start_or_last, EVENT.id, descending=True)

row_ids = st.from_regex(r"evt_[A-Za-z0-9]{16}", fullmatch=True)
times = st.none() | st.datetimes(
    min_value=datetime(1000, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)
)


def packed(*parts):
    return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


@given(key=times, row_id=row_ids, backward=st.booleans())
def test_a_cursor_comes_back_as_it_was_given_out(key, row_id, backward):
    cursor = Cursor("-updated_at", key, row_id, backward)
    assert Cursor.decode(cursor.encode(), ordering="-updated_at") == cursor


def test_a_cursor_can_stand_in_a_link_as_it_is():
    assert Cursor("-start_time", AT, "evt_1").encode().replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "é", "=", "!!!!", "bnVsbA", packed(), packed(1, 2, 3, 4), packed(*"updated_at"),
        packed("-updated_at", None, "evt_1", False),
        packed("updated_at", None, "evt_1"), packed("updated_at", None, "evt_1", False, 1),
        packed("updated_at", None, "evt_1", 0), packed("updated_at", None, None, False),
        packed("updated_at", None, "evt_\x00", False), packed("updated_at", None, "é", False),
        packed("updated_at", "2026-01-01T00:00:00", "evt_1", False),
        packed("updated_at", "2026-01-01T00:00:00+01:00", "evt_1", False),
        packed("updated_at", "0001-01-01T00:00:00+14:00", "evt_1", False),
        packed("updated_at", "infinity", "evt_1", False), packed("updated_at", 5, "evt_1", False),
        packed("updated_at", {}, "evt_1", False), packed("updated_at", [], "evt_1", False),
    ],
)  # fmt: skip
def test_what_this_list_did_not_give_out_is_refused(text):
    with pytest.raises(BadQuery):
        Cursor.decode(text, ordering="updated_at")


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_no_text_breaks_the_decoder(text):
    with contextlib.suppress(BadQuery):
        Cursor.decode(text, ordering="updated_at")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 9) | st.text(), lambda inner: st.lists(inner, max_size=5)
    )
)
def test_no_json_breaks_the_decoder(value):
    with contextlib.suppress(BadQuery):
        Cursor.decode(base64.urlsafe_b64encode(orjson.dumps(value)).decode(), ordering="updated_at")


def test_a_cursor_of_another_ordering_is_refused():
    with pytest.raises(BadQuery):
        Cursor.decode(Cursor("created_at", AT, "evt_1").encode(), ordering="updated_at")


def test_an_aware_time_of_another_zone_is_given_out_in_utc():
    there = AT.astimezone(timezone(timedelta(hours=-5)))
    assert Cursor.decode(Cursor("x", there, "evt_1").encode(), ordering="x").key == AT


# -- seek: which way the rows are compared and ordered ------------------------------------------------------


def sql(ordering, cursor):
    from sqlalchemy import select
    from sqlalchemy.dialects import postgresql

    statement = seek(select(EVENT.id), ordering, cursor, 25)
    compiled = str(statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
    return " ".join(compiled.split()).partition("FROM calendar_events ")[2].replace("calendar_events.", "")


def test_without_a_cursor_the_list_starts_at_its_end_that_comes_first():
    assert sql(UPDATED, None) == "ORDER BY updated_at ASC, id ASC LIMIT 26"
    assert sql(STARTED, None).endswith("DESC, id DESC LIMIT 26")


def test_forwards_is_behind_the_cursor_and_backwards_before_it_in_reverse():
    forward = sql(UPDATED, Cursor("updated_at", AT, "evt_1"))
    assert forward == (
        "WHERE (updated_at, id) > ('2026-01-01 12:30:00.000005+00:00', 'evt_1') ORDER BY updated_at ASC, id ASC LIMIT 26"
    )
    backward = sql(UPDATED, Cursor("updated_at", AT, "evt_1", backward=True))
    assert ") < (" in backward
    assert backward.endswith("ORDER BY updated_at DESC, id DESC LIMIT 26")
    assert ") > (" in sql(STARTED, Cursor("-start_time", AT, "evt_1", backward=True))


def test_rows_without_a_key_stand_last():
    statement = sql(STARTED, Cursor("-start_time", None, "evt_1"))
    assert (
        "(coalesce(start_time, 'infinity'::timestamptz), id) < ('infinity'::timestamptz, 'evt_1')"
        in statement
    )


# -- pages --------------------------------------------------------------------------------------------------


def fetch(keys, cursor, limit):
    """What the database returns for `seek` over rows (None, key) in ascending order."""
    if cursor is None:
        found = keys
    elif cursor.backward:
        found = [key for key in reversed(keys) if key < cursor.id]
    else:
        found = [key for key in keys if key > cursor.id]
    return found[: limit + 1]


@given(count=st.integers(0, 40), limit=st.integers(1, 12))
def test_pages_cover_the_list_forwards_and_backwards(count, limit):
    keys = [f"{number:04}" for number in range(count)]

    def page_at(cursor):
        return page_of(fetch(keys, cursor, limit), UPDATED, cursor, limit, place=lambda key: (None, key))

    page = page_at(None)
    assert page.previous is None
    chunks = [list(page.rows)]
    while page.next is not None:
        page = page_at(page.next)
        chunks.append(list(page.rows))
    assert chunks == ([keys[at : at + limit] for at in range(0, count, limit)] or [[]])

    back = []
    while page.previous is not None:
        page = page_at(page.previous)
        back.append(list(page.rows))
        assert page.next is not None
    assert back == chunks[-2::-1]


def test_a_page_behind_which_everything_is_deleted_is_empty_and_has_no_links():
    page: Page[str] = page_of(
        [], UPDATED, Cursor("updated_at", AT, "evt_1"), 10, place=lambda row: (None, row)
    )
    assert (list(page.rows), page.next, page.previous) == ([], None, None)
