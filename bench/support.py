"""Shared parts of the benchmarks: embedded servers, processes with fake providers, and measuring."""

import asyncio
import contextlib
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

from app.cli.devserver.embedded import start_postgres, start_redis
from app.settings import Settings
from migrations.revisions import upgrade_to_head
from tests.fakes.google import FakeGoogle
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve


@contextlib.contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """Run a durable PostgreSQL with the schema, and a Redis.

    Yields their URLs. Their folder is deleted afterwards.
    """
    folder = Path(tempfile.mkdtemp(prefix="calbridge-bench-"))
    folder.chmod(0o711)
    postgres, redis = start_postgres(folder), start_redis(folder)
    try:
        upgrade_to_head(postgres.url)
        yield postgres.url, redis.url
    finally:
        redis.stop()
        postgres.stop()
        shutil.rmtree(folder)


def settings_for(database_url: str, redis_url: str, **values: Any) -> Settings:
    return Settings(
        _env_file=None,
        **{
            "database_url": database_url,
            "redis_url": redis_url,
            "credentials_encryption_keys": Fernet.generate_key().decode(),
            "allow_private_network_targets": True,
            **values,
        },
    )


@contextlib.contextmanager
def worker(settings: Settings, **environment: str) -> Iterator[None]:
    """Run a worker process. `environment`: further settings as variables."""
    assert settings.credentials_encryption_keys is not None
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "DATABASE_URL": settings.required_database_url(),
        "REDIS_URL": settings.required_redis_url(),
        "CREDENTIALS_ENCRYPTION_KEYS": settings.credentials_encryption_keys.get_secret_value(),
        "ALLOW_PRIVATE_NETWORK_TARGETS": "true",
        "LOG_LEVEL": "WARNING",
        **environment,
    }
    process = subprocess.Popen([sys.executable, "-m", "app.cli.main", "worker"], env=variables)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Provider:
    url: str
    client_id: str
    client_secret: str
    refresh_token: str


def _serve_google(pipe: Any, calendars: dict[str, int], days: float) -> None:
    async def main() -> None:
        fake = FakeGoogle()
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=12)
        for name, count in calendars.items():
            fake.add_calendar(name)
            spacing = timedelta(days=days) / max(count, 1)
            fake.seed(count, start=start, spacing=spacing, description_length=3000, calendar_id=name)
        async with serve(fake) as url:
            pipe.send(Provider(url, fake.client_id, fake.client_secret, fake.refresh_token))
            while not pipe.poll():
                await asyncio.sleep(0.05)

    asyncio.run(main())


def _serve_microsoft(pipe: Any, count: int, days: float) -> None:
    async def main() -> None:
        fake = FakeMicrosoft()
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=12)
        fake.seed(count, start=start, spacing=timedelta(days=days) / count)
        async with serve(fake) as url:
            pipe.send(Provider(url, fake.client_id, fake.client_secret, fake.refresh_token))
            while not pipe.poll():
                await asyncio.sleep(0.05)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def _process(target: Callable[..., None], *arguments: Any) -> AsyncIterator[Provider]:
    """Run a fake provider in its own process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(ours.recv)
    finally:
        ours.send("stop")
        await asyncio.to_thread(process.join, 10)


def microsoft_process(count: int, *, days: float = 28) -> contextlib.AbstractAsyncContextManager[Provider]:
    """Run a fake Microsoft Graph whose primary calendar has this many events in so many days."""
    return _process(_serve_microsoft, count, days)


def google_process(
    calendars: dict[str, int], *, days: float = 28
) -> contextlib.AbstractAsyncContextManager[Provider]:
    """Run a fake Google with this many events of about 3.6 kB in each calendar, in so many days."""
    return _process(_serve_google, calendars, days)


@dataclass
class Measured:
    wall: float = 0.0
    cpu: float = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Measured]:
    """Measure the wall time and this process's CPU time, in seconds."""
    result = Measured()

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    wall, used = time.perf_counter(), cpu()
    yield result
    result.wall, result.cpu = time.perf_counter() - wall, cpu() - used


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
