"""Time, always aware and in UTC."""

from datetime import UTC, datetime


def utcnow() -> datetime:
    return datetime.now(UTC)


def isoformat(value: datetime) -> str:
    """ISO 8601, UTC, microseconds, `Z` (docs/reference/http-api.md, "Times")."""
    return value.astimezone(UTC).isoformat("T", "microseconds").removesuffix("+00:00") + "Z"
