"""The times of an event and its repetition, in words."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from app.core.languages import Language
from app.ical.values import parse_time
from app.itip.event import MailedEvent
from app.mail.texts import TEXTS, Texts


def when_text(event: MailedEvent, language: Language) -> str:
    """The time of an event, as `Tuesday 24 November 2026, 10:00 – 10:30 (Europe/Paris, CET)`."""
    texts = TEXTS[language]
    zone = ZoneInfo(event.timezone)
    start, end = event.start.astimezone(zone), event.end.astimezone(zone)
    if event.is_all_day:
        last = max(start, end - timedelta(days=1))
        days = (
            _day(start, texts)
            if last.date() <= start.date()
            else f"{_day(start, texts)} – {_day(last, texts)}"
        )
        return f"{days}, {texts['all_day']}"
    if start.date() == end.date():
        span = f"{_day(start, texts)}, {start:%H:%M} – {end:%H:%M}"
    else:
        span = f"{_day(start, texts)}, {start:%H:%M} – {_day(end, texts)}, {end:%H:%M}"
    return f"{span} ({_zone_name(event.timezone, start, end)})"


def _zone_name(name: str, start: datetime, end: datetime) -> str:
    """The IANA name and the abbreviation on that day; the offset if the abbreviation has no letters."""
    if name == "UTC":
        return name
    short = start.tzname() or ""
    if start.utcoffset() != end.utcoffset():
        short = f"{short}/{end.tzname()}"
    if not short.replace("/", "").isalpha():
        minutes = round((start.utcoffset() or timedelta(0)).total_seconds() / 60)
        short = f"UTC{'-' if minutes < 0 else '+'}{abs(minutes) // 60}"
        short += f":{abs(minutes) % 60:02}" if minutes % 60 else ""
    return f"{name}, {short}"


def _day(at: datetime, texts: Texts) -> str:
    day = texts["first_day"] if at.day == 1 else str(at.day)
    return f"{texts['weekdays'][at.weekday()]} {day} {texts['months'][at.month - 1]} {at.year}"


_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


def repeats_text(event: MailedEvent, language: Language) -> str:
    """How a series repeats, such as `Every 2 weeks on Monday and Wednesday, until 24 December 2026`.

    "" for a single event; "Repeats" for a rule that cannot be said in such a sentence.
    """
    if event.recurrence_id is not None or not event.recurrence:
        return ""
    texts = TEXTS[language]
    rules = [line.partition(":")[2].upper() for line in event.recurrence if line.upper().startswith("RRULE")]
    if len(rules) != 1:
        return texts["repeats"]
    parts = dict(part.partition("=")[::2] for part in rules[0].split(";"))
    spoken = _spoken_rule(parts, event, texts)
    return spoken or texts["repeats"]


def _spoken_rule(parts: Mapping[str, str], event: MailedEvent, texts: Texts) -> str | None:
    if set(parts) - {"FREQ", "INTERVAL", "BYDAY", "UNTIL", "COUNT", "WKST"}:
        return None
    every = texts["every"].get(parts.get("FREQ", ""))
    interval = parts.get("INTERVAL", "1")
    if every is None or not interval.isdigit():
        return None
    spoken = every[0] if interval == "1" else every[1].format(count=interval)
    if "BYDAY" in parts:
        days = parts["BYDAY"].split(",")
        if parts["FREQ"] != "WEEKLY" or not set(days) <= set(_WEEKDAYS):
            return None
        names = [texts["weekdays"][_WEEKDAYS.index(day)] for day in days]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {texts['last_and']} {names[-1]}"
        spoken += f" {texts['on_days']} {listed}"
    until = parse_time(parts["UNTIL"]) if "UNTIL" in parts else None
    if until is not None:
        last = until.wall
        if until.is_utc:
            last = last.replace(tzinfo=UTC).astimezone(ZoneInfo(event.timezone))
        spoken += f", {texts['until']} {_day(last, texts)}"
    elif parts.get("COUNT", "").isdigit():
        spoken += f", {texts['times'].format(count=parts['COUNT'])}"
    return spoken
