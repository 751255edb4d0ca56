"""Busy times of a calendar, merged and as JSON. A response has thousands of them."""

from collections.abc import Iterable, Mapping, Sequence

from app.availability.spans import Instant, Span, text_of, union, without

# The stronger first.
STATUSES = ("out_of_office", "busy", "tentative")
# The quarters of an hour of 92 days are 8,832: most events start and end at one of them.
_KEPT = 10_000


class _Written(dict[Instant, str]):
    """Instants as a part of the JSON, kept for later requests."""

    def __init__(self, before: str, after: str) -> None:
        self._before, self._after = before, after

    def __missing__(self, at: Instant) -> str:
        if len(self) >= _KEPT:
            self.clear()
        written = self[at] = f"{self._before}{text_of(at)}{self._after}"
        return written


_starts = _Written('{"start":"', '","end":"')
_ends = {status: _Written("", f'","status":"{status}"}}') for status in STATUSES}


def merge_busy(by_status: Mapping[str, Iterable[Span]]) -> dict[str, list[Span]]:
    """Merge the times of each status. Where two overlap, the stronger status wins."""
    merged: dict[str, list[Span]] = {}
    taken: list[Span] = []
    for status in STATUSES:
        merged[status] = without(union(by_status.get(status, ())), taken)
        taken = sorted(taken + merged[status])
    return merged


def busy_json(busy: Mapping[str, Sequence[Span]]) -> str:
    """Return busy times by status as a JSON array, sorted by start. No two of them start at the same time."""
    written: list[str] = []
    for status, spans in busy.items():
        ends = _ends[status]
        written += [_starts[start] + ends[end] for start, end in spans]
    # Their texts sort as the times do: both begin with the year, which has four digits.
    written.sort()
    return f"[{','.join(written)}]"
