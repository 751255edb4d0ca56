"""Busy times of Google calendars by freeBusy.query (docs/reference/google.md, "Free/busy")."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog

from app.core.http import httpx
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ClientMisconfigured,
    CredentialsRevoked,
    CursorExpired,
    NotAsked,
    ProviderError,
    RateLimited,
    TokenSource,
    Unavailable,
)
from app.providers.free_busy import BusyTime, Range, check_time, cut_to, overlap, pieces
from app.providers.google.client import GoogleClient, classify_error
from app.providers.http import require_object

log = structlog.get_logger(__name__)

_MOST_CALENDARS = 50
# Google refuses about three months.
_LONGEST = timedelta(days=60)
_MAX_BODY_BYTES = 8 * 1024 * 1024
# A request that Google refuses as malformed is repeated in halves, so often in one read.
_MOST_SPLITS = 12
# What concerns the account or the client: the next request would get the same.
_STOPS = (ClientMisconfigured, CredentialsRevoked, NotAsked, RateLimited)
_SCOPE_MISSING = (
    "The connection lacks a scope for free/busy. Google accepts calendar.readonly, calendar.freebusy, "
    "calendar.events.freebusy or calendar; calendar.events alone is not enough."
)
_REASONS = {
    "notFound": "Google does not know this calendar, or the account may not see it.",
    "internalError": "Google could not read this calendar: try again later.",
    "backendError": "Google could not read this calendar: try again later.",
    "rateLimitExceeded": "Google asks to slow down.",
    "userRateLimitExceeded": "Google asks to slow down.",
}


class GoogleFreeBusy:
    """The busy times of an account's calendars. One request at a time, of up to 50 calendars and 60 days.

    `base_url` is GOOGLE_API_BASE_URL; `deadline_seconds` is for each request.
    """

    def __init__(
        self, *, client: httpx.AsyncClient, tokens: TokenSource, base_url: str, deadline_seconds: float
    ) -> None:
        self._google = GoogleClient(client=client, tokens=tokens, base_url=base_url)
        self._deadline_seconds = deadline_seconds
        self._splits_left = _MOST_SPLITS

    async def read(self, wanted: Mapping[str, Sequence[Range]]) -> dict[str, list[BusyTime] | ProviderError]:
        """The busy times of each calendar within its ranges, or why they are not known.

        The status is always `busy`: Google does not say which times are tentative, or absences.
        """
        found: dict[str, list[BusyTime]] = {calendar_id: [] for calendar_id in wanted}
        failed: dict[str, ProviderError] = {}
        for piece in pieces((one for ranges in wanted.values() for one in ranges), _LONGEST):
            ids = [
                calendar_id
                for calendar_id, ranges in wanted.items()
                if calendar_id not in failed and any(overlap(one, piece) for one in ranges)
            ]
            for start in range(0, len(ids), _MOST_CALENDARS):
                some = ids[start : start + _MOST_CALENDARS]
                for calendar_id, result in (await self._query(piece, some)).items():
                    if isinstance(result, ProviderError):
                        failed[calendar_id] = result
                    else:
                        found[calendar_id] += result
                stop = next((failed[one] for one in some if isinstance(failed.get(one), _STOPS)), None)
                if stop is not None:
                    return dict.fromkeys(wanted, stop)
        return {
            calendar_id: failed.get(calendar_id) or cut_to(found[calendar_id], ranges)
            for calendar_id, ranges in wanted.items()
        }

    async def _query(self, asked: Range, ids: Sequence[str]) -> Mapping[str, list[BusyTime] | ProviderError]:
        try:
            document = await self._post(asked, ids)
        except ProviderError as err:
            if err.code != "bad_request" or len(ids) == 1 or self._splits_left == 0:
                return dict.fromkeys(ids, err)
            self._splits_left -= 1
            # One id that Google cannot read must not hide the others.
            half = len(ids) // 2
            return {**await self._query(asked, ids[:half]), **await self._query(asked, ids[half:])}
        entries = document.get("calendars")
        found: dict[str, list[BusyTime] | ProviderError] = {}
        for calendar_id in ids:
            try:
                _check_range(document, asked)
                entry = entries.get(calendar_id) if isinstance(entries, dict) else None
                found[calendar_id] = _busy_times(entry, asked)
            except ProviderError as err:
                found[calendar_id] = err
        return found

    async def _post(self, asked: Range, ids: Sequence[str]) -> dict[str, Any]:
        response = await self._google.send(
            "POST",
            "/freeBusy",
            document={
                "timeMin": _written(asked[0]),
                "timeMax": _written(asked[1]),
                "timeZone": "UTC",
                "items": [{"id": calendar_id} for calendar_id in ids],
            },
            max_bytes=_MAX_BODY_BYTES,
            deadline_seconds=self._deadline_seconds,
        )
        if response.status == 200:
            return require_object(response, "Google")
        error = classify_error(response.status, response.body, response.headers)
        log.info("google.free_busy_refused", status=response.status, code=error.code)
        if isinstance(error, AccessDenied) and error.code == "scope_missing":
            raise AccessDenied(_SCOPE_MISSING, code=error.code)
        if isinstance(error, CursorExpired | CalendarRemoved):
            raise Unavailable(f"Google returned HTTP status {response.status}.")
        raise error


def _busy_times(entry: Any, asked: Range) -> list[BusyTime]:
    """The times of a calendar's entry. Raises ProviderError for one that does not say when it is busy."""
    if not isinstance(entry, dict):
        raise Unavailable("Google's response says nothing about this calendar.", code="broken_answer")
    if entry.get("errors"):
        raise _entry_error(entry["errors"])
    busy = entry.get("busy")
    if not isinstance(busy, list):
        raise Unavailable("Google's response says nothing about this calendar.", code="broken_answer")
    return [time for period in busy if (time := _busy_time(period, asked)) is not None]


def _busy_time(period: Any, asked: Range) -> BusyTime | None:
    start, end = (
        _moment(period.get(name)) if isinstance(period, dict) else None for name in ("start", "end")
    )
    if start is None or end is None:
        raise Unavailable("Google's response has unreadable times.", code="broken_answer")
    return check_time(BusyTime(start, end, "busy"), asked, "Google")


def _entry_error(errors: Any) -> ProviderError:
    """The error of an entry that has errors: it is not free, whatever `busy` beside them says."""
    words = [
        error.get("reason")
        for error in (errors if isinstance(errors, list) else [])
        if isinstance(error, dict) and isinstance(error.get("reason"), str)
    ]
    reason = next((word for word in words if word in _REASONS), None)
    if reason == "notFound":
        return CalendarRemoved(_REASONS[reason])
    return Unavailable(_REASONS[reason] if reason else "Google could not say when this calendar is busy.")


def _check_range(document: Mapping[str, Any], asked: Range) -> None:
    """Raise Unavailable if the response says that it is for less than was asked."""
    start, end = _moment(document.get("timeMin")), _moment(document.get("timeMax"))
    if (start is not None and start > asked[0]) or (end is not None and end < asked[1]):
        raise Unavailable("Google's response is for another range of time.", code="broken_answer")


def _moment(written: Any) -> datetime | None:
    """A time with an offset; None for anything else."""
    if not isinstance(written, str):
        return None
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        return None
    return None if at.tzinfo is None else at


def _written(at: datetime) -> str:
    return at.replace(tzinfo=None).isoformat() + "Z"
