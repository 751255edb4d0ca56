"""Claims of due calendars among 100,000 connected ones, and a backlog after hours of downtime."""

import asyncio
import time
from datetime import timedelta

from sqlalchemy import text

from app.core.db import create_engine, create_sessions, transaction
from app.sync.repository import claim_due
from bench.support import quantile, servers

_CALENDARS = 100_000
_SEED = """
    INSERT INTO projects (id, name) VALUES ('proj_bench', 'bench');
    INSERT INTO calendars (id, project_id, platform, next_sync_at)
    SELECT 'cal_' || lpad(n::text, 16, '0'), 'proj_bench', 'google', now() + n * interval '18 ms'
    FROM generate_series(1, {count}) AS n;
    ANALYZE calendars;
"""


async def _main(database_url: str) -> None:
    engine = create_engine(database_url)
    sessions = create_sessions(engine)
    async with engine.begin() as connection:
        for statement in _SEED.format(count=_CALENDARS).split(";")[:-1]:
            await connection.execute(text(statement))

    async def tick() -> tuple[float, int]:
        started = time.perf_counter()
        async with transaction(sessions) as session:
            claims = await claim_due(session, limit=16, lease_for=timedelta(seconds=90))
        return (time.perf_counter() - started) * 1000, len(claims)

    idle = [await tick() for _ in range(200)]
    print(
        f"{_CALENDARS} calendars, few due: a tick takes {quantile([ms for ms, _ in idle], 0.5):.1f} ms (p50), "
        f"{quantile([ms for ms, _ in idle], 0.95):.1f} ms (p95), target 20; {sum(n for _, n in idle)} claimed"
    )
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE calendars SET next_sync_at = now() - random() * interval '3 hours'")
        )
    overdue = [await tick() for _ in range(200)]
    print(
        f"all of them overdue: a tick takes {quantile([ms for ms, _ in overdue], 0.5):.1f} ms (p50), "
        f"{quantile([ms for ms, _ in overdue], 0.95):.1f} ms (p95); {sum(n for _, n in overdue)} claimed, 16 at most each"
    )
    await engine.dispose()


def main() -> None:
    with servers() as (database_url, _):
        asyncio.run(_main(database_url))


if __name__ == "__main__":
    main()
