"""The newest changes in memory (app/changes/feed.py), and cursors (app/changes/places.py)."""

import gc
import weakref
from datetime import UTC, datetime, timedelta

import pytest

from app.changes import feed as feed_module
from app.changes.errors import BadCursor
from app.changes.feed import Feed, Follower
from app.changes.places import Place, Scope, decode_cursor, encode_cursor
from app.changes.rendering import Change

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PROJECT = Scope("proj_1")
CALENDAR = Scope("proj_1", "cal_1")


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def change(second: int, calendar_id: str = "cal_1", size: int = 10) -> Change:
    return Change(Place(at(second), f"evt_{second}"), at(second), calendar_id, False, b"x" * size)


def join(feed: Feed, scope: Scope, knows_until: datetime) -> Follower | None:
    channel = feed.channel(scope)
    joint = channel.find_joint(knows_until)
    if joint is None:
        return None
    follower = Follower(scope)
    follower.begin(channel, joint, knows_until)
    return follower


def taken(follower: Follower) -> list[str]:
    changes = follower.take()
    assert changes is not None
    return [one.place.event_id for one in changes]


def test_a_follower_takes_what_it_does_not_know() -> None:
    feed = Feed("proj_1", at(0), Place(at(0)))
    first = join(feed, PROJECT, at(0))
    one = join(feed, CALENDAR, at(0))
    assert first is not None
    assert one is not None
    feed.add([change(1), change(2, "cal_2"), change(3)])
    feed.move_to(at(4))
    assert first.news.is_set()
    # It read a page up to the second 2 before it joined.
    late = join(feed, PROJECT, at(2))
    assert late is not None
    assert late.news.is_set()
    assert taken(late) == ["evt_2", "evt_3"]
    feed.add([change(5)])
    assert taken(first) == ["evt_1", "evt_2", "evt_3", "evt_5"]
    assert taken(late) == ["evt_5"]
    assert taken(one) == ["evt_1", "evt_3", "evt_5"]
    assert taken(one) == []
    assert not one.news.is_set()


def test_a_client_that_knows_too_little_must_read_a_page() -> None:
    feed = Feed("proj_1", at(0), Place(at(0)))
    feed.add([change(1)])
    feed.move_to(at(2))
    # The channel is made after the change.
    assert join(feed, PROJECT, at(1)) is None
    assert join(feed, PROJECT, at(2)) is not None


def test_where_the_project_was_quiet() -> None:
    feed = Feed("proj_1", at(10), Place(at(5), "evt_5"))
    assert feed.is_quiet_since(Place(at(5), "evt_5"))
    assert feed.is_quiet_since(Place(at(7)))
    assert not feed.is_quiet_since(Place(at(5)))
    assert not feed.is_quiet_since(Place(at(5), "evt_4"))
    assert not feed.is_quiet_since(Place(at(11)))
    feed.add([change(11), change(12)])
    assert not feed.is_quiet_since(Place(at(7)))
    assert not feed.is_quiet_since(Place(at(11), "evt_11"))
    assert feed.is_quiet_since(Place(at(12), "evt_12"))


def test_what_all_have_taken_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_RECENT_SECONDS", -1)
    feed = Feed("proj_1", at(0), Place(at(0)))
    quick, slow = join(feed, PROJECT, at(0)), join(feed, PROJECT, at(0))
    assert quick is not None
    assert slow is not None
    kept = []
    for second in range(1, 30):
        one = change(second, size=100_000)
        kept.append(weakref.ref(one))
        feed.add([one])
        del one
        quick.take()
    feed.forget_old()
    gc.collect()
    # The slow one is further behind than it may be, so nothing is kept for it.
    assert slow.take() is None
    assert [reference() for reference in kept] == [None] * len(kept)


def test_a_cursor_is_its_place_in_its_scope() -> None:
    for scope in (PROJECT, CALENDAR):
        for place in (
            Place(NOW), Place(NOW, "evt_h3Gk29sLqPzX81Ab"),
            Place(datetime.min.replace(tzinfo=UTC)), Place(datetime.max.replace(tzinfo=UTC), "a"),
        ):  # fmt: skip
            text = encode_cursor(scope, place)
            assert decode_cursor(scope, text) == place
            for other in (PROJECT, CALENDAR, Scope("proj_2"), Scope("proj_2", "cal_1")):
                if other != scope:
                    with pytest.raises(BadCursor):
                        decode_cursor(other, text)
            for n in range(len(text)):
                changed = text[:n] + ("A" if text[n] != "A" else "B") + text[n + 1 :]
                with pytest.raises(BadCursor):
                    decode_cursor(scope, changed)
                with pytest.raises(BadCursor):
                    decode_cursor(scope, text[:n])
