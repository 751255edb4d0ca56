"""Time, always aware and in UTC."""

from datetime import UTC, datetime


def utcnow() -> datetime:
    return datetime.now(UTC)


def isoformat(value: datetime) -> str:
    """Format a time as ISO 8601 in UTC, with microseconds and `Z` (docs/reference/http-api.md)."""
    return value.astimezone(UTC).isoformat("T", "microseconds").removesuffix("+00:00") + "Z"
