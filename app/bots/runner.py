"""What an Attendee-compatible runner is known to refuse, so that it is said when a bot is scheduled and not when it is due."""

from typing import Any

from app.meeting_links.extract import find_platform
from app.meeting_urls.hosts import meeting_hosts
from app.settings import Settings

LONGEST_NAME = 255
_LAST_OF_BASIC_PLANE = 0xFFFF


def check_name(name: str) -> str:
    """Raises ValueError for characters that a runner, which types the name key by key, does not take."""
    if any(ord(character) > _LAST_OF_BASIC_PLANE for character in name):
        raise ValueError("A bot's name may not have emoji or other characters beyond U+FFFF.")
    return name


def drop_nulls(value: Any) -> Any:
    """A setting without what is null in objects, at any depth: to the runner null is a value, and a wrong one."""
    if isinstance(value, dict):
        return {name: drop_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def check_setting(value: Any) -> Any:
    """`drop_nulls`. Raises ValueError for null in a list, where leaving it out would move the others."""
    if _has_null_in_list(value):
        raise ValueError("A list may not have null in it.")
    return drop_nulls(value)


def _has_null_in_list(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null_in_list, value.values()))
    return isinstance(value, list) and (None in value or any(map(_has_null_in_list, value)))


def platform_fault(meeting_url: str, settings: Settings, *, platform: str | None = None) -> str | None:
    """Why the runner cannot join there, as a sentence; None if it can. `platform`: where it is known already."""
    platform = platform or find_platform(meeting_url, meeting_hosts(settings))
    joined = settings.bot_runner_platforms
    if platform in joined:
        return None
    whose = f"of {platform}" if platform is not None else "of no meeting service that is known here"
    return f"The bot runner cannot join a meeting {whose}; it joins {', '.join(sorted(joined))} (BOT_RUNNER_PLATFORMS)."
