"""Feeds of test data, written and read."""

from datetime import UTC, datetime
from pathlib import Path

from app.events.data import RemoteEvent, Window
from app.ical.feed import Feed
from app.providers.ics.events import FeedEvents, Reader

FILES = Path(__file__).parents[2] / "data" / "ics"
WINDOW = Window(datetime(2026, 11, 19, tzinfo=UTC), datetime(2026, 12, 18, tzinfo=UTC))
GOOD_FILES = sorted(
    path.name
    for path in FILES.glob("*.ics")
    if path.name not in {"truncated.ics", "html.ics", "empty_file.ics"}
)


def read(body: bytes, *, window: Window = WINDOW, owner_email: str | None = None) -> list[RemoteEvent]:
    events = FeedEvents(Feed(body).select(window), Reader(owner_email=owner_email))
    return events.page(0, len(events))


def read_file(name: str, **options) -> dict[str, RemoteEvent]:
    events = read((FILES / name).read_bytes(), **options)
    by_id = {event.platform_uuid: event for event in events}
    assert len(by_id) == len(events)
    return by_id


def calendar(*lines: str) -> bytes:
    return "\r\n".join(["BEGIN:VCALENDAR", "VERSION:2.0", *lines, "END:VCALENDAR", ""]).encode()


def vevent(uid: str, *lines: str) -> str:
    return "\r\n".join(["BEGIN:VEVENT", f"UID:{uid}", *lines, "END:VEVENT"])


def utc(month: int, day: int, hour: int = 0, minute: int = 0, *, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def starts(events: dict[str, RemoteEvent]) -> dict[str, datetime | None]:
    return {platform_uuid: event.start_time for platform_uuid, event in events.items()}
