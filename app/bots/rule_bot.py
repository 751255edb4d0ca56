"""Rows of the bots that join rules make, and the meetings that several events may share."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Phase = Literal["waiting", "busy", "done"]


@dataclass(frozen=True, slots=True)
class RuleBotRow:
    """A bot that a rule made. `digest`: a hash of what that rule said of it."""

    id: str
    event_id: str
    state: str
    is_attempted: bool
    may_be_handed_over: bool
    join_at: datetime
    meeting_url: str | None
    rule: str
    digest: str

    @property
    def phase(self) -> Phase:
        """`waiting`: it can still be changed. `busy`: a call to the runner is in progress. `done`: neither."""
        if self.state == "scheduled" or (self.is_attempted and not self.may_be_handed_over):
            return "waiting"
        return "busy" if self.is_attempted else "done"


@dataclass(frozen=True, slots=True)
class Meetings:
    """The links of meetings, as their MD5, and the range of time in which they start."""

    hashes: Sequence[str]
    since: datetime
    until: datetime

    def values(self) -> dict[str, Any]:
        """The parameters of statements."""
        return {"hashes": list(self.hashes), "since": self.since, "until": self.until}
