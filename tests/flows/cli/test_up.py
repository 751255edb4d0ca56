"""`calbridge up` as its user sees it: one process that brings everything, and keeps it whatever happens."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from app.core.db import create_engine
from app.core.http import httpx

READY_SECONDS = 60


@pytest.fixture(autouse=True)
def _clean(clean_environment):
    return clean_environment


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Up:
    """A running `calbridge up`."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        with (data_dir.parent / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                command(data_dir, *options), stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def read_until(self, is_last: Callable[[str], bool]) -> list[str]:
        lines = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.append(line.rstrip("\n"))
            if is_last(lines[-1]):
                return lines
        raise AssertionError((self.data_dir.parent / "stderr").read_text())

    def family(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number):
        """Exit code, and what else was on stdout."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, rest.strip()


def command(data_dir: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "app.cli.main", "up", "--data-dir", str(data_dir), *options]


@contextlib.contextmanager
def running(data_dir: Path, *options: str) -> Iterator[Up]:
    up = Up(data_dir, *options)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)
        if up.process.stdout is not None:
            up.process.stdout.close()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def have_ended(family: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(family, timeout=0)[1]


def calendars_of(base_url, api_key):
    response = httpx.get(f"{base_url}/api/v1/calendars", headers={"Authorization": f"Token {api_key}"})
    assert response.status_code == 200, response.text
    return [calendar["id"] for calendar in response.json()["results"]]


def metrics_of(base_url: str) -> str:
    return httpx.get(f"{base_url}/metrics").text


def is_ready(base_url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{base_url}/readyz").status_code == 200
    return False


def test_it_brings_everything_and_goes_on_with_the_same_data_after_ctrl_c_and_after_kill(servers_dir):
    # A space in the path, and a path too long for a socket: both must do.
    data_dir = servers_dir / "the data" / ("d" * 60)
    data_dir.parent.mkdir()

    with running(data_dir, "--port", "0", "--json") as up:
        started = json.loads(up.read_until(lambda _: True)[0])
        assert set(started) == {"base_url", "project_id", "api_key", "database_url", "redis_url"}
        base_url, api_key = started["base_url"], started["api_key"]
        created = httpx.post(
            f"{base_url}/api/v1/calendars",
            headers={"Authorization": f"Token {api_key}"},
            json={"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"},
        )
        assert created.status_code == 201, created.text
        calendar_id = created.json()["id"]

        # The redirect URI that docs/connect-google.md and docs/connect-microsoft.md say to register.
        app = httpx.post(
            f"{base_url}/api/v1/oauth/apps",
            headers={"Authorization": f"Token {api_key}"},
            json={
                "platform": "google",
                "client_id": "id",
                "client_secret": "secret",
                "redirect_uris": ["http://localhost:8001/connected"],
            },
        )
        assert app.status_code == 201, app.text
        port = base_url.rpartition(":")[2]
        assert app.json()["callback_url"] == f"http://localhost:{port}/oauth/google/callback"

        # The API's /metrics has the worker's numbers too.
        wait_for(lambda: "calbridge_sync_seconds_count{" in metrics_of(base_url), "the sync was not counted")
        assert "calbridge_workers 1.0" in metrics_of(base_url)

        for name in ("credentials_encryption_keys", "demo_project.json", "up.json"):
            assert (data_dir / name).stat().st_mode & 0o777 == 0o600

        second = subprocess.run(
            command(data_dir, "--port", "0"), capture_output=True, text=True, timeout=30, check=False
        )
        assert second.returncode == 1
        assert "Another `calbridge up` runs on" in second.stderr
        assert second.stdout == ""

        # A child that dies comes back, PostgreSQL too.
        family = up.family()
        (api,) = (child for child in family if "api" in child.cmdline())
        (postgres,) = (child for child in family if child.name() == "postgres" and "-D" in child.cmdline())
        api.kill()
        postgres.kill()
        wait_for(lambda: have_ended([api, postgres]) and is_ready(base_url), "the API did not come back")
        assert calendars_of(base_url, api_key) == [calendar_id]

        family = up.family()
        assert len(family) >= 4
        assert up.end(signal.SIGINT) == (0, "")
        assert have_ended(family)
        assert not (data_dir / "up.json").exists()

    with running(data_dir, "--port", "0", "--json") as up:
        again = json.loads(up.read_until(lambda _: True)[0])
        assert (again["project_id"], again["api_key"]) == (started["project_id"], api_key)
        assert calendars_of(again["base_url"], api_key) == [calendar_id]
        family = up.family()
        up.end(signal.SIGKILL)
        if sys.platform == "linux":
            wait_for(lambda: have_ended(family), "children outlived their parent")

    port = free_port()
    with running(data_dir, "--port", str(port)) as up:
        lines = up.read_until(lambda line: "calbridge doctor" in line)
        assert any(f"http://127.0.0.1:{port}" in line for line in lines)
        *pasted, next_command = [line for line in lines if "curl -" in line]
        assert len(pasted) == 3
        assert f"KEY={api_key}" in lines
        # zsh takes a pasted comment for a command, and an apostrophe in it for the start of a string.
        block = lines[lines.index(f"KEY={api_key}") : lines.index(pasted[-1]) + 1]
        assert all(line.startswith(("KEY=", "curl ", "sleep ")) for line in block if line)
        if shutil.which("curl"):
            # All at once, as a newcomer does; and again, which makes no second calendar.
            start, end = lines.index(f"KEY={api_key}"), lines.index(pasted[-1])
            connected, _, calendars = paste(lines[start : end + 1])
            assert connected["platform"] == "ics"
            again = [lines[start], pasted[1]]  # three seconds may be too short on a busy machine
            wait_for(lambda: len(paste(again)[0]["results"]) >= 20, "the sample's events did not arrive")
            assert [one["id"] for one in calendars["results"]] == [connected["id"], calendar_id]
            (free_busy,) = paste([lines[start], next_command])
            (sample,) = free_busy["results"]
            assert sample["error"] is None
            assert len(sample["busy"]) == 7  # five stand-ups and two meetings a week
            refused, _, unchanged = paste(lines[start : end + 1])
            assert list(refused) == ["deduplication_key"]
            assert [one["id"] for one in unchanged["results"]] == [connected["id"], calendar_id]
        assert up.end(signal.SIGTERM) == (0, "")


def paste(lines):
    """What a shell says to the lines, just as they were printed."""
    done = subprocess.run(
        ["sh", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    responses, rest = [], done.stdout
    while rest:
        response, end = json.JSONDecoder().raw_decode(rest)
        responses.append(response)
        rest = rest[end:].lstrip()
    return responses


@pytest.mark.changes_schema
def test_an_older_release_goes_on_with_the_schema_of_a_newer_one(
    servers_dir, monkeypatch, database_url, redis_url
):
    asyncio.run(_pretend_newer(database_url))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    data_dir = servers_dir / "older" / "data"
    data_dir.parent.mkdir()
    with running(data_dir, "--port", "0", "--json") as up:
        started = json.loads(up.read_until(lambda _: True)[0])
        assert calendars_of(started["base_url"], started["api_key"]) == []
        assert up.end(signal.SIGTERM) == (0, "")
    said = (data_dir.parent / "stderr").read_text()
    assert "The schema is at revision ofthefuture, which a newer release than this one has made" in said
    assert "Traceback" not in said


async def _pretend_newer(database_url: str) -> None:
    engine = create_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'ofthefuture'"))
    await engine.dispose()


def test_wrong_data_folders_are_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        command(tmp_path / "file" / "data"), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Choose another with --data-dir" in done.stderr
    assert len(done.stderr.splitlines()) == 1
