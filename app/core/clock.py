"""The current time, and times as text. Every time is aware and in UTC."""

from datetime import UTC, datetime


def utcnow() -> datetime:
    return datetime.now(UTC)


def isoformat(value: datetime) -> str:
    """Return the time in ISO 8601, in UTC, with microseconds and `Z`: 2026-01-31T09:00:00.000000Z.

    See docs/reference/http-api.md, "Times".
    """
    return value.astimezone(UTC).isoformat("T", "microseconds").removesuffix("+00:00") + "Z"
