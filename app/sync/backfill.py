"""What `app.events.backfill` reads from the `raw` of each platform's events."""

from collections.abc import Mapping
from typing import Any

from app.core.db import Sessions
from app.events.backfill import Source, fill_derived
from app.events.derived import Derived
from app.providers.google import fields as google
from app.providers.ics.events import read_derived_from_raw
from app.providers.microsoft import fields as microsoft


def _defaults(_raw: Mapping[str, Any]) -> Derived:
    return Derived()


_SOURCES = {
    "google": Source(google.DERIVED_FROM, google.read_derived),
    # `raw` has no `@odata.etag`: the next sync writes it.
    "microsoft": Source(microsoft.DERIVED_FROM, microsoft.read_derived),
    "ics": Source(("ics",), read_derived_from_raw),
    "local": Source((), _defaults),
}


async def fill_old_events(sessions: Sessions) -> int:
    """Fill the derived fields of events that an earlier release wrote; returns how many."""
    return await fill_derived(sessions, _SOURCES)
