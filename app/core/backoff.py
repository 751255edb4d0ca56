"""Waits between attempts: a schedule, spread by jitter, never shorter than a Retry-After.

Attempts are rows that any process may take up, so a wait is computed from the number of failures in the row. Libraries
such as tenacity compute it from the state of a retry loop inside one process.
"""

import random
from dataclasses import dataclass
from typing import Self

# (lowest, highest) factor by which a wait is multiplied at random, such as (0.75, 1.25).
Jitter = tuple[float, float]

LONGEST_RETRY_AFTER_SECONDS = 86_400.0


def spread(seconds: float, jitter: Jitter) -> float:
    """Multiply a wait by a random factor, so that work that began together does not stay together."""
    return seconds * random.uniform(*jitter)  # noqa: S311 - not for secrets


def respect_retry_after(seconds: float, retry_after: float | None) -> float:
    """Lengthen a wait to what the other side asked for in seconds, a day at most."""
    return max(seconds, min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS))


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait after the first, the second, ... failure; the last wait repeats.

    Raises ValueError for an empty schedule.
    """

    waits: tuple[float, ...]
    jitter: Jitter

    def __post_init__(self) -> None:
        if not self.waits:
            raise ValueError("A backoff needs at least one wait.")

    @classmethod
    def exponential(cls, first: float, longest: float, *, jitter: Jitter, factor: float = 2.0) -> Self:
        """Return waits that grow by `factor` from `first` to `longest` seconds.

        Raises ValueError for values that never reach `longest`.
        """
        if first <= 0 or factor <= 1:
            raise ValueError("An exponential backoff needs a positive first wait and a factor above 1.")
        waits = [min(first, longest)]
        while waits[-1] < longest:
            waits.append(min(waits[-1] * factor, longest))
        return cls(tuple(waits), jitter)

    def delay(self, failures: int, *, retry_after: float | None = None) -> float:
        """Return the seconds until the next attempt, after `failures` failed ones in a row (1 or more).

        Jitter applies to the schedule; `retry_after`, in seconds, is a lower limit of the result.
        """
        wait = self.waits[min(max(failures, 1), len(self.waits)) - 1]
        return respect_retry_after(spread(wait, self.jitter), retry_after)
