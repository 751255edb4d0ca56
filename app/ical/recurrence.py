"""Recurrence rules (RFC 5545 section 3.3.10), with bounds: no rule keeps a worker busy without end.

dateutil expands rules that repeat daily or less often. From a start years ago, or with parts that never match, it can
count seconds until the year 9999. So rules that repeat more often are expanded by arithmetic, and refused if they have
parts for which that is not enough.

Rules are expanded on the wall clock, without zones: a meeting at ten stays at ten.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from dateutil.rrule import rrulestr  # type: ignore[import-untyped] # no types are shipped

from app.ical.values import Written, parse_time

_LONGEST_RULE = 2_000
_RULE = re.compile(r"[A-Z0-9=;,+-]+")
# The most starts of one rule that are looked at: more than a century of days.
_MOST_STEPS = 50_000
_UNITS = {
    "SECONDLY": timedelta(seconds=1),
    "MINUTELY": timedelta(minutes=1),
    "HOURLY": timedelta(hours=1),
    "DAILY": timedelta(days=1),
    "WEEKLY": timedelta(weeks=1),
}
_SEVERAL_A_DAY = frozenset({"SECONDLY", "MINUTELY", "HOURLY"})
_NO_CONDITIONS = frozenset({"FREQ", "INTERVAL", "COUNT", "WKST"})


class RuleRefused(ValueError):
    """The rule cannot be read, or would take too long to expand."""


class Rule:
    """An RRULE with its parts checked. `until` is UNTIL as written, which `walls` ignores.

    Raises RuleRefused.
    """

    def __init__(self, text: str) -> None:
        text = "".join(text.upper().split())
        if len(text) > _LONGEST_RULE or not _RULE.fullmatch(text):
            raise RuleRefused("the text is not a rule")
        pairs = (part.partition("=") for part in text.split(";") if part)
        self._parts = {name: value for name, _, value in pairs}
        self.until: Written | None = None
        if "UNTIL" in self._parts:
            self.until = parse_time(self._parts.pop("UNTIL"))
            if self.until is None:
                raise RuleRefused("UNTIL is not a time")
        self._interval = self._number("INTERVAL") or 1
        self._count = self._number("COUNT")
        self._frequency = self._parts.get("FREQ", "")
        # Values without a meaning are common ("COUNT=-1", "INTERVAL=0"), and dateutil never ends with some.
        for name, number in (("INTERVAL", self._interval), ("COUNT", self._count)):
            self._parts.pop(name, None)
            if number:
                self._parts[name] = str(number)

    def _number(self, name: str) -> int | None:
        text = self._parts.get(name, "")
        if text.lstrip("+-").isascii() and text.lstrip("+-").isdigit() and len(text) < 10:
            return max(int(text), 0)
        if text:
            raise RuleRefused(f"{name} is not a number")
        return None

    def walls(self, start: datetime, *, first: datetime, last: datetime) -> Iterator[datetime]:
        """Yield the starts from `first` to `last` (naive, inclusive); `start` is DTSTART, also naive.

        Raises RuleRefused, also after some starts.
        """
        if self._frequency in _SEVERAL_A_DAY:
            yield from self._arithmetic(start, first=first, last=last)
            return
        if self._frequency in _UNITS and not self._count:
            # Without a COUNT, whole intervals can be skipped.
            step = self._step()
            start += max((first - start) // step - 1, 0) * step
        try:
            starts = iter(
                rrulestr(";".join(f"{name}={value}" for name, value in self._parts.items()), dtstart=start)
            )
            for _ in range(_MOST_STEPS):
                wall = next(starts, None)
                if wall is None or wall > last:
                    return
                if wall >= first:
                    yield wall
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as err:
            raise RuleRefused("the rule cannot be read") from err
        raise RuleRefused("the rule has too many starts")

    def _step(self) -> timedelta:
        try:
            return _UNITS[self._frequency] * self._interval
        except OverflowError as err:
            raise RuleRefused("INTERVAL is too large") from err

    def _arithmetic(self, start: datetime, *, first: datetime, last: datetime) -> Iterator[datetime]:
        if not self._parts.keys() <= _NO_CONDITIONS:
            raise RuleRefused("conditions on what repeats within a day are not supported")
        step = self._step()
        if step > last - start:
            # What comes next may be out of datetime's range.
            if first <= start <= last:
                yield start
            return
        number = max(-((start - first) // step), 0)
        while not self._count or number < self._count:
            wall = start + number * step
            if wall > last:
                return
            yield wall
            number += 1
