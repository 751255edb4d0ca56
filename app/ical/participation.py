"""Participation statuses (RFC 5545 section 3.2.12) and the words for them in the API."""

from collections.abc import Mapping
from typing import Literal

from icalendar.enums import PARTSTAT

ParticipationStatus = Literal["needs_action", "accepted", "tentative", "declined"]

PARTSTATS: Mapping[ParticipationStatus, PARTSTAT] = {
    "needs_action": PARTSTAT.NEEDS_ACTION,
    "accepted": PARTSTAT.ACCEPTED,
    "tentative": PARTSTAT.TENTATIVE,
    "declined": PARTSTAT.DECLINED,
}
_STATUSES: Mapping[str, ParticipationStatus] = {
    partstat.value: status for status, partstat in PARTSTATS.items()
}


def parse_partstat(text: str | None) -> ParticipationStatus | None:
    """Return the status of a PARTSTAT parameter, in any case; None for DELEGATED and unknown values."""
    return _STATUSES.get((text or "").strip().upper())
