"""Events that a complete response leaves out, and which of them are deleted at once (pure).

A complete response may leave out most of a calendar by mistake. A mass of omissions is applied once a second
response, a while later, leaves out the same events: docs/adr/0003-believing-providers.md.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.events.data import KnownEvent, RemoteEvent, Window
from app.events.diff import is_in_window
from app.providers.base import Reread
from app.sync.repository import HeldBack

# A response without a second one may not leave out all of so many events ahead, or most of so many.
_SHRINKS_ALL_OF = 3
_SHRINKS_MOST_OF = 5


@dataclass(slots=True)
class Absent:
    """Live rows in the window that a full round did not list, by the rows' ids.

    `removed`: deleted or cancelled, as the provider says of each; with the `raw` of the cancelled event, if any.
    `unclear`: the provider still has them in the window, or does not say. `unread`: not asked for yet.
    `moved`: the events that exist outside the window.
    """

    count: int = 0
    removed: dict[str, str | None] = field(default_factory=dict)
    unclear: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    moved: list[RemoteEvent] = field(default_factory=list)


def sort_absent(missing: Mapping[str, KnownEvent], reread: Reread, listed: Window) -> Absent:
    """Sort the live rows that a full round did not list, by what the provider says of each.

    `missing` is by row id. `listed`: the range of time whose events were all listed.
    """
    absent = Absent(count=len(missing))
    absent.moved = [event for event in reread.found if not is_in_window(event, listed)]
    moved = {event.platform_uuid for event in absent.moved}
    unread = frozenset(reread.unread)
    for event_id, known in missing.items():
        platform_uuid = known.platform_uuid
        if platform_uuid in reread.removed:
            absent.removed[event_id] = reread.removed[platform_uuid]
        elif platform_uuid in unread:
            absent.unread.append(event_id)
        elif platform_uuid not in moved:
            absent.unclear.append(event_id)
    return absent


@dataclass(frozen=True, slots=True)
class EventsAhead:
    """Counts of the calendar's live events that have not started.

    Only events count that were known before a response was in doubt. `missing`: those of them that the response leaves out. `held`: those of `missing` that are held back already.
    """

    total: int
    missing: int
    held: int


def split_missing(
    *,
    removed: Sequence[str],
    unclear: Sequence[str],
    unread: Sequence[str],
    held: HeldBack | None,
    ahead: EventsAhead,
    now: datetime,
    confirm_for: timedelta,
) -> tuple[list[str], HeldBack | None]:
    """Split the events that a complete response leaves out into ids to delete now, and ids to hold back.

    `removed`, `unclear`, `unread`: ids of events, see `Absent`. Only omissions are doubted: a list of changes names
    each deletion by itself. `unread` counts for the mass, and is never deleted. `held`: held back by an earlier
    response. `confirm_for`: how long an omission must last until it is applied.
    """
    missing = [*removed, *unclear, *unread]
    all_doubted = _is_mass(ahead.missing, of=ahead.total)
    doubted = missing if all_doubted else list(unclear)
    if not doubted:
        return list(removed), None
    held_ids: Collection[str] = set(held.ids) if held is not None else ()
    same = [event_id for event_id in doubted if event_id in held_ids]
    fresh = [event_id for event_id in doubted if event_id not in held_ids]
    still_held: HeldBack | None
    left = set(unread)
    if held is None or not same:
        still_held = HeldBack(doubted, now)
        left.update(doubted)
    elif now - held.since < confirm_for:
        still_held = HeldBack(same, held.since)
        left.update(doubted)
    elif fresh and (not all_doubted or _is_mass(ahead.missing - ahead.held, of=ahead.total - ahead.held)):
        still_held = HeldBack(fresh, now)
        left.update(fresh)
    else:
        # The rest of a mass that is confirmed by now.
        still_held = HeldBack(list(unread), held.since) if all_doubted and unread else None
    return [event_id for event_id in missing if event_id not in left], still_held


def _is_mass(count: int, *, of: int) -> bool:
    return (count == of >= _SHRINKS_ALL_OF) or (of >= _SHRINKS_MOST_OF and count * 2 > of)
