"""Hosted events, as other features use them."""

from app.hosted.calendar import LocalCalendar
from app.hosted.components import Attendee, EventComponent
from app.hosted.replies import LoadedEvent, Outcome, Reply, load_event, record_reply
from app.hosted.repository import (
    find_calendar,
    find_calendars_of_uid,
    lock_calendar,
    note_inbound_reply,
    schedule_rewrite,
)
from app.hosted.rules import last_end
from app.hosted.upkeep import find_horizon, rewrite_due_events

__all__ = [
    "Attendee",
    "EventComponent",
    "LoadedEvent",
    "LocalCalendar",
    "Outcome",
    "Reply",
    "find_calendar",
    "find_calendars_of_uid",
    "find_horizon",
    "last_end",
    "load_event",
    "lock_calendar",
    "note_inbound_reply",
    "record_reply",
    "rewrite_due_events",
    "schedule_rewrite",
]
