"""Checks for what an Attendee-compatible runner refuses.

Clients get the error when they schedule the bot, and not minutes before the meeting.
"""

from typing import Any

from app.meeting_links.extract import find_platform
from app.meeting_urls.hosts import meeting_hosts
from app.settings import Settings

LONGEST_NAME = 255
_LAST_OF_BASIC_PLANE = 0xFFFF


def check_name(name: str) -> str:
    """Return the name. Raises ValueError for characters that a runner cannot type."""
    if any(ord(character) > _LAST_OF_BASIC_PLANE for character in name):
        raise ValueError("A bot's name may not have emoji or other characters beyond U+FFFF.")
    return name


def drop_nulls(value: Any) -> Any:
    """Remove nulls in objects from a setting, at any depth: the runner does not accept null as a value."""
    if isinstance(value, dict):
        return {name: drop_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def check_setting(value: Any) -> Any:
    """Return the setting without nulls.

    Raises ValueError for null in a list, where removing it moves the others.
    """
    if _has_null_in_list(value):
        raise ValueError("A list may not have null in it.")
    return drop_nulls(value)


def _has_null_in_list(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null_in_list, value.values()))
    return isinstance(value, list) and (None in value or any(map(_has_null_in_list, value)))


def platform_fault(meeting_url: str, settings: Settings, *, platform: str | None = None) -> str | None:
    """Return a sentence that says why the runner cannot join there; None if it can.

    `platform`: if known already.
    """
    platform = platform or find_platform(meeting_url, meeting_hosts(settings))
    joined = settings.bot_runner_platforms
    if platform in joined:
        return None
    whose = f"of {platform}" if platform is not None else "of no meeting service that is known here"
    return f"The bot runner cannot join a meeting {whose}; it joins {', '.join(sorted(joined))} (BOT_RUNNER_PLATFORMS)."
