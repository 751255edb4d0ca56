"""Metrics of running processes: `/metrics` and `/healthz` of a worker, `/metrics` of several API processes."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.cli.shared_metrics import VARIABLE, empty_directory, shared_metrics
from app.core.http import httpx
from app.settings import Settings
from tests.conftest import FERNET_KEY
from workers import liveness

READY_SECONDS = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@contextlib.contextmanager
def running(*command: str, settings: Settings, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours with these settings; it is ended, and its children with it."""
    env = {
        **os.environ,
        "DATABASE_URL": settings.required_database_url(),
        "REDIS_URL": settings.required_redis_url(),
        "CREDENTIALS_ENCRYPTION_KEYS": FERNET_KEY,
        "SCHEDULER_TICK_SECONDS": "0.2",
        **env,
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        family = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in psutil.wait_procs(family, timeout=5)[1]:
            child.kill()


def get(url: str) -> httpx.Response | None:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=5)
    return None


def status_of(url: str) -> int | None:
    response = get(url)
    return None if response is None else response.status_code


def samples(url: str) -> dict[tuple[str, ...], float]:
    response = get(f"{url}/metrics")
    assert response is not None
    assert response.status_code == 200, response.text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_a_worker_reports_its_loops_and_its_work(settings, tmp_path, api):
    created = await api.post(
        "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"}
    )
    assert created.status_code == 201, created.text
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ("-m", "app.cli.main", "worker", "--metrics-port", str(port))
    with running(*command, settings=settings, log=tmp_path / "log") as process:
        wait_for(lambda: status_of(f"{url}/healthz") == 200, (tmp_path / "log").read_text())
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "late": {}}

        def synced() -> float:
            return sum(
                value
                for (name, *labels), value in samples(url).items()
                if name == "calbridge_sync_seconds_count" and "ics" in labels
            )

        wait_for(lambda: synced() >= 1, "the sync was not counted")
        found = samples(url)
        assert found["calbridge_work_slots", "syncs"] >= 1
        assert ("calbridge_work_in_progress", "deliveries") in found
        assert found["calbridge_event_loop_delay_seconds_count",] >= 0
        assert status_of(f"{url}/") == 404
        assert httpx.head(f"{url}/healthz").status_code == 200

        taken = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "DATABASE_URL": "postgresql://x@/x", "REDIS_URL": "redis://x", "CREDENTIALS_ENCRYPTION_KEYS": FERNET_KEY},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )  # fmt: skip
        assert taken.returncode == 1
        assert taken.stderr.strip() == f"Port {port} is taken. Choose another with --metrics-port."
        process.terminate()
        assert process.wait(40) == 0


# The real worker, in which a signal blocks the event loop, and another one makes claims of syncs hang.
BREAKABLE = """
import asyncio, signal, time
import workers.liveness, workers.process, workers.work_loop
from app.sync.engine import SyncEngine

workers.liveness._EVENT_LOOP_WITHIN_SECONDS = 3
workers.work_loop._CLAIM_TIMEOUT_SECONDS = 3
run_worker, claim = workers.process.run_worker, SyncEngine.claim
is_hanging = False

async def hang_or_claim(self, *args, **options):
    if is_hanging:
        await asyncio.Event().wait()
    return await claim(self, *args, **options)

def hang():
    global is_hanging
    is_hanging = True

async def run(settings):
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, time.sleep, 30)
    loop.add_signal_handler(signal.SIGUSR2, hang)
    await run_worker(settings)

workers.process.run_worker, SyncEngine.claim = run, hang_or_claim
from app.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("number", "loop"),
    [(signal.SIGUSR1, "event_loop"), (signal.SIGUSR2, "syncs")],
    ids=["blocked", "hanging"],
)
def test_a_worker_that_hangs_is_not_healthy_and_names_what_hangs(settings, tmp_path, number, loop):
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ("-c", textwrap.dedent(BREAKABLE), "worker", "--metrics-port", str(port))
    with running(*command, settings=settings, log=tmp_path / "log") as process:
        wait_for(lambda: status_of(f"{url}/healthz") == 200, "the worker did not start")
        wait_for(lambda: samples(url).get(("calbridge_event_loop_delay_seconds_count",)), "it does not run")
        process.send_signal(number)
        wait_for(lambda: status_of(f"{url}/healthz") == 503, "it did not notice")
        # Another loop that claims in the same way may be late first.
        wait_for(
            lambda: loop in httpx.get(f"{url}/healthz").json().get("late", ()), "it does not name what hangs"
        )
        assert httpx.get(f"{url}/healthz").json()["status"] == "unavailable"
        assert ("calbridge_work_slots", "syncs") in samples(url)  # the thread goes on
        process.kill()


async def test_every_loop_of_a_worker_comes_round_under_the_name_of_its_task(start_worker, monkeypatch):
    """A loop that is added does so too, or is late for ever."""
    expect, expected = liveness.expect, dict[str, float]()

    def note(loops, **options):
        expect(loops, **options)
        if liveness._due:
            expected.update({loop: seen for loop, (seen, _) in liveness._due.items()})

    monkeypatch.setattr(liveness, "expect", note)
    await start_worker()

    def missing() -> set[str]:
        return {loop for loop in expected if liveness._due[loop][0] == expected[loop]}

    deadline = time.monotonic() + 30
    while (not expected or missing()) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert missing() == set()
    assert set(liveness._due) == set(expected)
    assert expected.keys() >= {
        "syncs",
        "deliveries",
        "bots",
        "mails",
        "heartbeat",
        "redis_listener",
        "event_loop",
    }


def test_all_api_processes_give_the_same_totals(settings, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("-m", "app.cli.main", "api", "--workers", "2", "--port", str(port))
    asked = 0

    def ask() -> None:
        nonlocal asked
        assert status_of(f"{url}/api/v1/calendars") == 401
        asked += 1

    def total() -> float:
        return samples(url)["calbridge_http_request_seconds_count", "GET", "/api/v1/calendars", "401"]

    with running(*command, settings=settings, log=tmp_path / "log", TMPDIR=str(tmp_path)) as process:
        wait_for(lambda: status_of(f"{url}/healthz") == 200, "the API did not start")
        for _ in range(20):
            ask()
        assert [total() for _ in range(20)] == [asked] * 20
        (directory,) = tmp_path.glob("calbridge-metrics-*")
        serving = {path.stem.rpartition("_")[2] for path in directory.glob("histogram_*.db")}
        assert len(serving) == 2, "one process alone responded: nothing was shown"

        # What a process counted before it died stays counted.
        victim = psutil.Process(int(serving.pop()))
        victim.kill()
        wait_for(lambda: len(list(directory.glob("histogram_*.db"))) == 3, "no process came in its place")
        for _ in range(10):
            ask()
        assert [total() for _ in range(20)] == [asked] * 20
        process.terminate()
        process.wait(40)
        assert not directory.exists()


def test_gauges_of_dead_processes_are_forgotten_and_counters_are_not(tmp_path):
    script = "from app.core import metrics as m; m.WORK_SLOTS.labels('syncs').set(4); m.WORK_FAILURES.labels('syncs', 'claim').inc()"
    env = {**os.environ, VARIABLE: str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=env, check=True)
    assert len(list(tmp_path.glob("gauge_livesum_*.db"))) == 2
    show = script + "; import sys; sys.stdout.buffer.write(m.render())"
    shown = subprocess.run([sys.executable, "-c", show], env=env, check=True, capture_output=True, text=True)
    assert 'calbridge_work_slots{work="syncs"} 4.0' in shown.stdout
    assert 'calbridge_work_failures_total{step="claim",work="syncs"} 3.0' in shown.stdout
    empty_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_killed_processes_left_behind_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    leftover = tmp_path / f"calbridge-metrics-{os.geteuid()}-abc"
    leftover.mkdir()
    (leftover / "lock").touch()
    (leftover / "counter_1.db").touch()
    with shared_metrics():
        mine = Path(os.environ[VARIABLE])
        assert not leftover.exists()
        del os.environ[VARIABLE]
        with shared_metrics():  # as another command does it
            assert mine.exists()
        os.environ[VARIABLE] = str(mine)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_operator_named_is_used_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with shared_metrics():
        assert os.environ[VARIABLE] == str(tmp_path)
    assert os.environ[VARIABLE] == str(tmp_path)
