"""The due calendars as a queue for a worker: one for the calendars of accounts, one for feeds."""

from collections.abc import Callable

from app.sync.engine import SyncEngine
from app.sync.repository import Claim
from app.sync.turns import Kind, Turns


class SyncQueue:
    """The due calendars of one kind, synced in turns (app/sync/turns.py) in `slots` slots."""

    def __init__(
        self,
        engine: SyncEngine,
        kind: Kind,
        *,
        slots: int,
        host_of: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._kind: Kind = kind
        self._turns = Turns(slots, host_of)

    async def claim(self, limit: int) -> list[Claim]:
        claims = await self._engine.claim(limit, kinds=[self._kind], pick=self._turns.pick)
        for claim in claims:
            self._turns.begin(claim.calendar_id, claim.project_id)
        return claims

    async def handle(self, claim: Claim) -> None:
        try:
            await self._engine.handle(claim)
        finally:
            self._turns.end(claim.calendar_id)
