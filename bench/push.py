"""Push: the time from a provider's change to its webhook, and the response time of notifications.

It uses a real PostgreSQL and Redis. The API and a worker have their own processes and default settings (debounce 2 s,
tick 1 s). The fake provider and the receiver run in this process, on the same machine.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from app.core.clock import utcnow
from app.core.db import create_engine, create_sessions, transaction
from app.core.http import httpx
from app.projects.service import create_project
from app.settings import Settings
from bench.support import quantile, servers, settings_for
from tests.fakes.google import FakeGoogle
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.receiver import Receiver
from tests.fakes.server import serve

_NAMES = [f"calendar{n}@example.com" for n in range(16)]
_ROUNDS = 3
_BETWEEN_SECONDS = 0.2
_BURST = 20
_NOTIFICATIONS = 200
_AT_ONCE = 8
_READY_WITHIN_SECONDS = 30
_TARGET_SECONDS = 3.0
_TARGET_RESPONSE_MS = 50
_SECRETS = ("database_url", "redis_url", "credentials_encryption_keys")


@dataclass
class _Provider:
    """A fake provider. `change(calendar)` adds an event to one of its calendars.

    `calendars`: the fields of POST /calendars that name each calendar. `ours`: the calendars by calbridge's ids.
    """

    platform: str
    fake: Any
    calendars: dict[str, dict[str, str]]
    change: Callable[[str], None]
    count_channels: Callable[[], int]
    ours: dict[str, str] = field(default_factory=dict)
    change_times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def change_now(self, calendar: str) -> None:
        self.change_times[calendar].append(time.monotonic())
        self.change(calendar)


def _google(fake: FakeGoogle) -> _Provider:
    """Run a fake Google with calendars of one account."""
    fake.allow_http_push = True
    calendars = {
        fake.add_calendar(name): {"platform_uuid": name, "refresh_token": fake.refresh_token}
        for name in _NAMES
    }

    def change(calendar: str) -> None:
        start = utcnow() + timedelta(hours=24)
        fake.add_event(start=start, end=start + timedelta(hours=1), calendar_id=calendar)

    return _Provider("google", fake, calendars, change, lambda: len(fake.channels))


def _microsoft(fake: FakeMicrosoft) -> _Provider:
    """Run a fake Microsoft Graph with one mailbox for each calendar."""
    fake.allow_http_push = True
    calendars = {}
    for name in _NAMES:
        fake.add_mailbox(name)
        calendars[name] = {"refresh_token": fake.add_grant(mailbox=name)}

    def change(calendar: str) -> None:
        start = utcnow() + timedelta(hours=24)
        fake.add_event(start=start, end=start + timedelta(hours=1), mailbox=calendar, subject="Meeting")

    return _Provider("microsoft", fake, calendars, change, lambda: len(fake.subscriptions))


@contextlib.asynccontextmanager
async def _service(settings: Settings) -> AsyncIterator[None]:
    """Run the API at APP_URL, and a worker."""
    secret = {name: getattr(settings, name).get_secret_value() for name in _SECRETS}
    values = {**settings.model_dump(exclude_unset=True), **secret}
    environment = {**os.environ, **{name.upper(): str(value) for name, value in values.items()}}
    port = settings.app_url.rpartition(":")[2]
    program = str(Path(sys.executable).with_name("calbridge"))
    commands = [[program, "api", "--port", port], [program, "worker"]]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        async with httpx.AsyncClient(base_url=settings.app_url, trust_env=False) as client:

            async def is_ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/readyz?strict")).status_code == 200
                return False

            await _until(is_ready)
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(_READY_WITHIN_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def _connect(client: httpx.AsyncClient, provider: _Provider) -> None:
    """Connect the provider's calendars, and wait until each has a channel and no sync is due."""
    for calendar, fields in provider.calendars.items():
        response = await client.post(
            "/api/v1/calendars",
            json={
                "platform": provider.platform,
                **fields,
                "client_id": provider.fake.client_id,
                "client_secret": provider.fake.client_secret,
            },
        )
        response.raise_for_status()
        provider.ours[response.json()["id"]] = calendar

    async def all_open() -> bool:
        return provider.count_channels() == len(provider.calendars)

    await _until(all_open)
    await asyncio.sleep(2)  # the sync that follows each opening


def _latencies(provider: _Provider, receiver: Receiver) -> list[float]:
    """Return the seconds from each change to the webhook that counts it."""
    counted: dict[str, int] = defaultdict(int)
    seconds = []
    for received in receiver.received:
        calendar = provider.ours.get(received.json["calendar_id"])
        if calendar is not None:
            first = counted[calendar]
            counted[calendar] += received.json["data"]["changes"]["created"]
            seconds += [received.at - at for at in provider.change_times[calendar][first : counted[calendar]]]
    return seconds


async def _measure_changes(provider: _Provider, receiver: Receiver) -> None:
    """Measure changes that are so far apart that each has its own sync, then many at once."""

    async def all_counted() -> bool:
        return len(_latencies(provider, receiver)) == sum(map(len, provider.change_times.values()))

    for _ in range(_ROUNDS):
        for calendar in _NAMES:
            provider.change_now(calendar)
            await asyncio.sleep(_BETWEEN_SECONDS)
    await _until(all_counted)
    seconds = _latencies(provider, receiver)
    print(
        f"{provider.platform}: {len(seconds)} changes in {len(_NAMES)} calendars, debounce 2 s: change to webhook "
        f"{quantile(seconds, 0.5):.2f} s (p50), {quantile(seconds, 0.95):.2f} s (p95), "
        f"{max(seconds):.2f} s at most; target {_TARGET_SECONDS:g} s (p95)"
    )
    webhooks = len(receiver.received)
    for _ in range(_BURST):
        provider.change_now(_NAMES[0])
        await asyncio.sleep(0.05)
    await _until(all_counted)
    print(f"a burst of {_BURST} changes in 1 s: {len(receiver.received) - webhooks} webhook(s)")


async def _measure_notifications(fake: FakeGoogle, app_url: str) -> None:
    """Measure notifications of all channels, several at once.

    Each makes its calendar due, or finds it due.
    """
    took = []

    async def send(client: httpx.AsyncClient, channels: list[Any]) -> None:
        for channel in channels:
            headers = {
                "X-Goog-Channel-ID": channel.id,
                "X-Goog-Channel-Token": channel.token,
                "X-Goog-Resource-State": "exists",
            }
            started = time.perf_counter()
            response = await client.post(f"{app_url}/notifications/google", headers=headers)
            took.append((time.perf_counter() - started) * 1000)
            assert response.status_code == 200

    channels = random.choices(list(fake.channels.values()), k=_NOTIFICATIONS)
    async with httpx.AsyncClient(trust_env=False) as client:
        share = _NOTIFICATIONS // _AT_ONCE
        await asyncio.gather(*(send(client, channels[n * share : (n + 1) * share]) for n in range(_AT_ONCE)))
    print(
        f"notifications, {_AT_ONCE} at once: responses in {quantile(took, 0.5):.1f} ms (p50), "
        f"{quantile(took, 0.95):.1f} ms (p95), {len(took)} of them; target {_TARGET_RESPONSE_MS} ms"
    )


async def _main(database_url: str, redis_url: str) -> None:
    fake_google, fake_microsoft = FakeGoogle(), FakeMicrosoft()
    google, microsoft = _google(fake_google), _microsoft(fake_microsoft)
    engine = create_engine(database_url)
    async with transaction(create_sessions(engine)) as session:
        api_key = (await create_project(session, "bench")).api_key
    await engine.dispose()
    receiver = Receiver()
    async with (
        serve(fake_google) as google_url,
        serve(fake_microsoft) as microsoft_url,
        serve(receiver) as receiver.url,
    ):
        settings = settings_for(
            database_url,
            redis_url,
            app_url=f"http://127.0.0.1:{_free_port()}",
            calendar_push_enabled=True,
            environment="production",
            log_level="WARNING",
            google_api_base_url=google_url,
            google_oauth_token_url=f"{google_url}/token",
            microsoft_graph_base_url=f"{microsoft_url}/v1.0",
            microsoft_oauth_token_url=f"{microsoft_url}/common/oauth2/v2.0/token",
        )
        async with (
            _service(settings),
            httpx.AsyncClient(
                base_url=settings.app_url,
                headers={"Authorization": f"Token {api_key}"},
                timeout=20,
                trust_env=False,
            ) as client,
        ):
            webhook = {"url": receiver.url, "triggers": ["calendar.events_update"]}
            (await client.post("/api/v1/webhooks", json=webhook)).raise_for_status()
            await asyncio.gather(_connect(client, google), _connect(client, microsoft))
            for provider in (google, microsoft):
                await _measure_changes(provider, receiver)
            await _measure_notifications(fake_google, settings.app_url)


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
