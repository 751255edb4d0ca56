"""Which omissions of a complete response are believed at once (app/sync/deletions.py)."""

from datetime import UTC, datetime, timedelta

import pytest

from app.events.data import KnownEvent, RemoteEvent, Window
from app.providers.base import Reread
from app.sync.deletions import EventsAhead, sort_absent, split_missing
from app.sync.repository import HeldBack

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CONFIRM_FOR = timedelta(minutes=10)
LONG_AGO = NOW - CONFIRM_FOR


def test_what_exists_beyond_the_listed_part_of_the_window_is_not_missed() -> None:
    """A feed with too many instances lists a part of its window only."""
    listed = Window(NOW, NOW + timedelta(days=10))
    missing = {key: KnownEvent(key) for key in ("near", "far", "deleted")}
    near, far = (
        RemoteEvent(platform_uuid=key, raw="{}", start_time=NOW + timedelta(days=days))
        for key, days in (("near", 5), ("far", 10))
    )
    absent = sort_absent(missing, Reread(found=[near, far], removed={"deleted": None}), listed)
    assert (absent.moved, absent.unclear, absent.removed) == ([far], ["near"], {"deleted": None})


def split(
    removed: str = "",
    *,
    unclear: str = "",
    unread: str = "",
    of: int,
    held: HeldBack | None = None,
    ahead: str | None = None,
) -> tuple[str, HeldBack | None]:
    """Ids are single letters. `ahead`: those of the missing that have not started; all of them by default."""
    missing = set(removed + unclear + unread if ahead is None else ahead)
    now, still_held = split_missing(
        removed=list(removed),
        unclear=list(unclear),
        unread=list(unread),
        held=held,
        ahead=EventsAhead(of, len(missing), len(missing & set(held.ids if held else ""))),
        now=NOW,
        confirm_for=CONFIRM_FOR,
    )
    return "".join(now), still_held


@pytest.mark.parametrize(("count", "of"), [(1, 1), (2, 2), (3, 4), (2, 4), (2, 5), (3, 6)])
def test_a_few_are_believed_at_once(count: int, of: int) -> None:
    assert split("abcdef"[:count], of=of) == ("abcdef"[:count], None)


@pytest.mark.parametrize(("count", "of"), [(3, 3), (4, 4), (3, 5), (4, 7), (6, 6)])
def test_a_mass_is_held_back(count: int, of: int) -> None:
    assert split("abcdef"[:count], of=of) == ("", HeldBack(list("abcdef"[:count]), NOW))


def test_what_has_started_is_no_mass() -> None:
    assert split("abcdef", of=6, ahead="ab") == ("abcdef", None)


def test_what_is_unclear_waits_and_what_is_removed_goes() -> None:
    assert split("a", unclear="b", of=9) == ("a", HeldBack(["b"], NOW))


def test_a_second_response_too_soon_keeps_the_time_of_the_first() -> None:
    since = NOW - timedelta(minutes=9)
    held = HeldBack(list("abcx"), since)
    assert split("abcd", of=4, held=held) == ("", HeldBack(list("abc"), since))


def test_a_second_response_confirms_and_a_fresh_mass_is_held_back() -> None:
    held = HeldBack(list("abc"), LONG_AGO)
    assert split("abc", of=3, held=held) == ("abc", None)
    assert split("abcd", of=4, held=held) == ("abcd", None)
    assert split("abcdef", of=6, held=held) == ("abc", HeldBack(list("def"), NOW))


def test_the_unread_count_for_the_mass_and_stay_held_until_they_are_read() -> None:
    assert split("a", unread="bc", of=3) == ("", HeldBack(list("abc"), NOW))
    held = HeldBack(list("abc"), LONG_AGO)
    assert split("a", unread="bc", of=3, held=held) == ("a", HeldBack(list("bc"), LONG_AGO))
    assert split("a", unread="b", of=9) == ("a", None)


def test_what_was_unclear_is_confirmed_while_others_are_unread() -> None:
    held = HeldBack(["a"], LONG_AGO)
    assert split(unclear="a", unread="b", of=9, held=held) == ("a", None)


def test_other_events_than_those_held_back_start_anew() -> None:
    held = HeldBack(list("xyz"), LONG_AGO)
    assert split("abc", of=3, held=held) == ("", HeldBack(list("abc"), NOW))
