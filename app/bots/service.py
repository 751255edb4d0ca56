"""Scheduling, changing and deleting bots, and how they follow their events.

Every change is a `Transition` (lifecycle.py). It is written with its log entry and the deliveries of
`bot.state_change`, all in the caller's transaction.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.exc import IntegrityError

from app.api.not_found import CalendarEventNotFound
from app.bots import lifecycle
from app.bots.errors import BotNotFound, BotNotScheduled, DeduplicationKeyTaken
from app.bots.lifecycle import BotState, LogEntry, RemovalReason, Transition
from app.bots.repository import creating, reads, rule_bots, states
from app.bots.repository.creating import BookableEvent
from app.bots.repository.reads import BotFilters
from app.bots.repository.states import BotWithSettings
from app.bots.runner import drop_nulls, platform_fault
from app.bots.schemas import BotCreate, BotRead, BotsQuery, BotUpdate
from app.bots.words import shown_bot, shown_entry_type, shown_state, stored_states
from app.core.clock import isoformat, utcnow
from app.core.db import AnySession, ReadSession, Session
from app.core.errors import InvalidFields
from app.core.ids import new_id
from app.core.pagination import Page
from app.core.wakeups import wake_after_commit
from app.settings import Settings
from app.webhooks.outbox import Message, announce_each
from app.webhooks.payloads import BotFacts

PAGE_SIZE = 25

# A `join_at` of "now" may be this old when it arrives.
_SKEW = timedelta(minutes=1)

_READ_ONLY = "Read-only: it is the event's, and follows it."
_STAYS_WITH_AN_EVENT = "A bot cannot stop following its event: delete it, and schedule another."
_STAYS_WITH_ITS_EVENT = "A join rule made this bot for its event: schedule another one for another event."
_OF_STATE = ("calendar_event_id", "meeting_url", "join_at", "metadata")


def bots_json(event_id: ColumnElement[str]) -> ColumnElement[str]:
    """Return SQL for an event's bots as JSON text: a list of rows for `words.shown_bot`, oldest first."""
    return reads.bots_json(event_id)


async def get_bot(session: AnySession, project_id: str, bot_id: str) -> BotRead:
    """Return one bot. Raises BotNotFound."""
    row = await reads.find_bot(session, project_id, bot_id)
    if row is None:
        raise BotNotFound
    return BotRead(**shown_bot(dict(row)))


async def list_bots(session: ReadSession, project_id: str, query: BotsQuery) -> Page[BotRead]:
    """List the project's bots, oldest first. Raises BadQuery for a bad cursor."""
    asked = [*query.states, *([query.state] if query.state is not None else [])]
    wanted = stored_states(asked)
    if query.finds_nothing or (asked and not wanted):
        return Page([], None, None)
    filters = BotFilters(
        states=wanted or None,
        calendar_event_id=query.calendar_event_id,
        deduplication_key=query.deduplication_key,
        meeting_url=query.meeting_url,
        join_from=query.join_at_gte,
        join_until=query.join_at_lte,
        join_after=query.join_at_after,
        join_before=query.join_at_before,
    )
    page = await reads.list_bots(session, project_id, filters, query.cursor, query.rows_of(PAGE_SIZE))
    return Page([BotRead(**shown_bot(dict(row))) for row in page.rows], page.next, page.previous)


async def create_bot(session: Session, settings: Settings, project_id: str, body: BotCreate) -> BotRead:
    """Schedule a bot. Raises CalendarEventNotFound, InvalidFields, DeduplicationKeyTaken."""
    meeting_url, join_at = await _meeting(session, settings, project_id, body)
    if body.deduplication_key is not None:
        await creating.release_key(session, project_id, body.deduplication_key)
    bot_id = new_id("bot")
    inserted = await creating.insert_bot(
        session,
        {
            "id": bot_id,
            "project_id": project_id,
            "calendar_event_id": body.calendar_event_id,
            "meeting_url": meeting_url,
            "join_at": join_at or func.clock_timestamp(),
            "bot_name": body.bot_name,
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            "bot_settings": body.all_settings(),
            "events": [states.log_entry(LogEntry("scheduled"), utcnow())],
        },
    )
    if not inserted:
        raise DeduplicationKeyTaken
    return await get_bot(session, project_id, bot_id)


async def update_bot(
    session: Session, settings: Settings, project_id: str, bot_id: str, body: BotUpdate
) -> BotRead:
    """Change a bot; fields that are equal to the stored ones change nothing.

    Raises BotNotFound, CalendarEventNotFound, InvalidFields, BotNotScheduled, DeduplicationKeyTaken.
    """
    given = body.given()
    event_id = given.get("calendar_event_id")
    # The lock of the event's calendar comes before the bot's.
    event = await creating.lock_event(session, project_id, event_id) if event_id is not None else None
    old = await states.lock_bot(session, project_id, bot_id)
    if old is None:
        raise BotNotFound
    names = sorted(given.keys() | body.further_settings.keys())
    if names not in ([], ["metadata"]) and old.state.state != "scheduled":
        raise BotNotScheduled(shown_state(old.state.state), "only its metadata can still be changed.")
    if "calendar_event_id" in given and event_id == old.state.calendar_event_id:
        del given["calendar_event_id"]
    elif "calendar_event_id" in given and event_id is None:
        raise InvalidFields.one("calendar_event_id", _STAYS_WITH_AN_EVENT)
    if "calendar_event_id" in given and old.state.is_of_rule:
        raise InvalidFields.one("calendar_event_id", _STAYS_WITH_ITS_EVENT)
    if event_id is not None or old.state.calendar_event_id is not None:
        refused = [name for name in ("meeting_url", "join_at") if name in given]
        if refused:
            raise InvalidFields({name: [_READ_ONLY] for name in refused})
    if "calendar_event_id" in given:
        given["meeting_url"], given["join_at"] = _meeting_of_event(event, settings)
    elif "join_at" in given:
        _check_join_at(given["join_at"])
    if "meeting_url" in given and "calendar_event_id" not in given:
        _check_platform(given["meeting_url"], settings)
    state_changes = {name: given[name] for name in _OF_STATE if name in given}
    changes: dict[str, Any] = {
        name: given[name] for name in ("bot_name", "deduplication_key") if name in given
    }
    bot_settings = drop_nulls({**given.get("bot_settings", old.bot_settings), **body.further_settings})
    if "bot_settings" in given or body.further_settings:
        changes["bot_settings"] = bot_settings
    new = replace(old, state=replace(old.state, **state_changes), **changes)
    if new != old:
        await _change(session, old, new, LogEntry("updated", metadata={"fields": names}))
    return await get_bot(session, project_id, bot_id)


async def _change(session: Session, old: BotWithSettings, new: BotWithSettings, entry: LogEntry) -> None:
    """Write and announce a client's change. Raises DeduplicationKeyTaken."""
    at = utcnow()
    project_id = old.state.project_id
    if new.deduplication_key is not None and new.deduplication_key != old.deduplication_key:
        await creating.release_key(session, project_id, new.deduplication_key)
    try:
        await states.change_bot(session, new, states.log_entry(entry, at))
    except IntegrityError as err:
        # The unique index of the key is the only constraint that a change can violate.
        raise DeduplicationKeyTaken from err
    written = await states.lock_bot(session, project_id, old.state.id)
    assert written is not None
    await announce_transitions(session, [Transition(old.state, written.state, entry)], at)


async def delete_bot(session: Session, project_id: str, bot_id: str) -> None:
    """Delete a scheduled bot. Raises BotNotFound, BotNotScheduled.

    A bot that a join rule made is not made again for its event.
    """
    bot = await states.lock_bot(session, project_id, bot_id)
    if bot is None:
        raise BotNotFound
    if bot.state.state != "scheduled":
        raise BotNotScheduled(shown_state(bot.state.state), "only a scheduled bot can be deleted.")
    await apply_transitions(session, [Transition(bot.state, None, LogEntry("deleted", "requested"))])
    if bot.state.is_of_rule and bot.state.calendar_event_id is not None:
        await rule_bots.mark_deleted(
            session, bot.state.calendar_event_id, bot.state.meeting_url, bot.state.join_at
        )


async def follow_events(session: Session, event_ids: Sequence[str]) -> None:
    """Make the bots of these events follow them. Call it in the transaction that changed the events.

    The caller holds the row lock of the events' calendar.
    """
    if not event_ids:
        return
    now = utcnow()
    bots = await states.lock_bots_of_events(session, event_ids)
    transitions = [transition for bot in bots if (transition := lifecycle.follow(bot, now)) is not None]
    if transitions:
        wake_after_commit(session, "bots")
    await apply_transitions(session, transitions)


async def drop_bots_of_calendar(session: Session, calendar_id: str, reason: RemovalReason) -> None:
    """Delete the scheduled bots of a calendar's events. The caller holds the calendar's row lock."""
    now = utcnow()
    transitions = []
    for bot in await states.lock_bots_of_calendar(session, calendar_id):
        assert bot.event is not None
        transition = lifecycle.follow(replace(bot, event=replace(bot.event, removal_reason=reason)), now)
        if transition is not None:
            transitions.append(transition)
    await apply_transitions(session, transitions)


async def apply_transitions(session: Session, transitions: Sequence[Transition]) -> None:
    """Write and announce transitions, at most one for each bot. The caller holds the bots' row locks."""
    if not transitions:
        return
    at = utcnow()
    await states.save(session, transitions, at)
    await announce_transitions(session, transitions, at)


async def announce_transitions(session: Session, transitions: Sequence[Transition], at: datetime) -> None:
    """Write the deliveries of all transitions at once: a sync may change thousands of bots."""
    messages: dict[str, list[Message]] = defaultdict(list)
    for transition in transitions:
        if transition.entry is not None and transition.entry.is_announced:
            messages[transition.before.project_id].append(_message(transition, transition.entry, at))
    for project_id, announced in sorted(messages.items()):
        await announce_each(session, project_id=project_id, trigger="bot.state_change", messages=announced)


def _message(transition: Transition, entry: LogEntry, at: datetime) -> Message:
    bot: BotState = transition.after or transition.before
    new_state = shown_state(transition.after.state) if transition.after is not None else "deleted"
    return Message(
        calendar=bot.calendar,
        data={
            "state": new_state,
            "new_state": new_state,
            "old_state": shown_state(transition.before.state),
            "join_at": isoformat(bot.join_at),
            "meeting_url": bot.meeting_url,
            "event_type": shown_entry_type(entry.type),
            "event_sub_type": entry.sub_type,
            "event_metadata": entry.metadata,
            "created_at": isoformat(at),
        },
        bot=BotFacts(id=bot.id, metadata=bot.metadata),
        calendar_event_id=bot.calendar_event_id,
    )


async def _meeting(
    session: Session, settings: Settings, project_id: str, body: BotCreate
) -> tuple[str, datetime | None]:
    """Return the meeting URL and the time to join; None: now. Raises CalendarEventNotFound, InvalidFields."""
    if body.calendar_event_id is not None:
        given = [name for name in ("meeting_url", "join_at") if getattr(body, name) is not None]
        if given:
            sentence = "Leave it out when calendar_event_id is given: it is the event's, and follows it."
            raise InvalidFields({name: [sentence] for name in given})
        event = await creating.lock_event(session, project_id, body.calendar_event_id)
        return _meeting_of_event(event, settings)
    if body.meeting_url is None and body.join_at is None:
        raise InvalidFields.one("non_field_errors", "Give calendar_event_id, or meeting_url and join_at.")
    if body.meeting_url is None:
        raise InvalidFields.one("meeting_url", "This field is required without calendar_event_id.")
    _check_platform(body.meeting_url, settings)
    if body.join_at is None:
        return body.meeting_url, None
    _check_join_at(body.join_at)
    return body.meeting_url, body.join_at


def _meeting_of_event(event: BookableEvent | None, settings: Settings) -> tuple[str, datetime]:
    """Return an event's meeting URL and start. Raises CalendarEventNotFound, InvalidFields."""
    if event is None:
        raise CalendarEventNotFound
    fault: str | None = None
    if event.is_deleted:
        fault = "This event was cancelled or deleted."
    elif not event.is_connected:
        fault = "The event's calendar is disconnected, so that a bot could not follow the event."
    elif event.start_time is None:
        fault = "The provider does not state when this event starts."
    elif lifecycle.is_over(event.start_time, event.end_time, utcnow()):
        fault = "This event is over."
    elif event.meeting_url is None:
        fault = "This event has no meeting URL."
    else:
        fault = platform_fault(event.meeting_url, settings, platform=event.meeting_platform)
    if fault is not None:
        raise InvalidFields.one("calendar_event_id", fault)
    assert event.meeting_url is not None
    assert event.start_time is not None
    return event.meeting_url, event.start_time


def _check_platform(meeting_url: str, settings: Settings) -> None:
    fault = platform_fault(meeting_url, settings)
    if fault is not None:
        raise InvalidFields.one("meeting_url", fault)


def _check_join_at(join_at: datetime) -> None:
    if join_at < utcnow() - _SKEW:
        raise InvalidFields.one("join_at", "This time is in the past.")
