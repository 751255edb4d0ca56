"""Stored events, as a sync reads them. app/events/writer.py changes them."""

from app.events.repository import count_ahead, find_live_missing, find_live_of

__all__ = ["count_ahead", "find_live_missing", "find_live_of"]
