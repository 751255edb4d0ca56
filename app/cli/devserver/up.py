"""`calbridge up`: everything in one process tree, for development and small installations.

This process starts the servers that are not configured (app/cli/devserver/embedded.py), brings the schema up to date,
and keeps one API and one worker running. It holds a lock on its data folder, so that no other one uses the same data.
"""

import asyncio
import errno
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from cryptography.fernet import Fernet

from app.cli.devserver.embedded import Server, socket_folder, spawn, start_postgres, start_redis
from app.cli.devserver.supervisor import Child, end_together, restart_together, say
from app.cli.errors import CommandFailed, database_failures, explain_redis_error
from app.cli.shared_metrics import VARIABLE as METRICS_DIRECTORY
from app.cli.shared_metrics import empty_directory
from app.core.clock import utcnow
from app.core.db import create_engine, create_sessions, transaction
from app.core.wakeups import REDIS_UNAVAILABLE, WakeUps, connect_redis
from app.demo.api import PATH as DEMO_FEED_PATH
from app.environment import LOCK_FILE, RUNNING_FILE, Running
from app.projects.service import create_project, find_live_key
from app.settings import Settings, load_settings
from migrations.revisions import NEWER_SCHEMA, upgrade_to_head

_KEYS_FILE = "credentials_encryption_keys"
_DEMO_FILE = "demo_project.json"
_METRICS_FOLDER = "metrics"

_READY_WITHIN_SECONDS = 90
_PROGRAMS_END_WITHIN_SECONDS = 25
_SERVERS_END_WITHIN_SECONDS = 30
# Shorter than at the end: the next process does interrupted work again.
_PROGRAMS_RELOAD_WITHIN_SECONDS = 5
_LOOK_EVERY_SECONDS = 0.2


@dataclass
class _Children:
    """The child processes, in the order of their start."""

    servers: list[Child] = field(default_factory=list)
    programs: list[Child] = field(default_factory=list)

    def all(self) -> list[Child]:
        return [*self.servers, *self.programs]

    def end(self) -> None:
        """End the programs that use the servers, then the servers."""
        end_together(self.programs, _PROGRAMS_END_WITHIN_SECONDS)
        end_together(self.servers, _SERVERS_END_WITHIN_SECONDS)


def run_up(*, host: str, port: int, data_dir: Path, as_json: bool, reloads: bool = False) -> None:
    """Run until Ctrl-C or SIGTERM. Raises SettingsError and CommandFailed.

    `reloads`: the API and the worker are started again when the code changes.
    """
    settings = load_settings()
    data_dir = _make_data_dir(data_dir)
    children = _Children()
    with _only_one(data_dir):
        port = check_port(host, port)
        base_url = f"http://{_reachable(host)}:{port}"
        try:
            _signals_interrupt()
            if settings.redis_url is not None:
                asyncio.run(_check_redis(settings.required_redis_url()))
            try:
                settings = _start_servers(settings, data_dir, base_url, children.servers)
            except OSError as err:
                raise CommandFailed(f"The embedded servers cannot be started: {err}.") from None
            say("Bringing the database's schema up to date ...")
            with database_failures():
                newer = upgrade_to_head(settings.required_database_url())
            if newer is not None:
                say(NEWER_SCHEMA.format(newer))
            _write_running(data_dir, settings, base_url)
            say("Starting the API and a worker ...")
            _start_programs(settings, data_dir, host, port, children.programs)
            _wait_until_ready(base_url, children.all())
            with database_failures():
                demo = asyncio.run(_demo_project(data_dir, settings.required_database_url()))
            started = {
                "base_url": base_url,
                **demo,
                "database_url": settings.required_database_url(),
                "redis_url": settings.required_redis_url(),
            }
            print(json.dumps(started) if as_json else _welcome(started, data_dir), flush=True)
            for changed in _code_changes(reloads=reloads):
                if changed:
                    say(
                        f"{', '.join(os.path.relpath(path) for path in changed)} changed: starting the API and the worker again."
                    )
                    restart_together(children.programs, _PROGRAMS_RELOAD_WITHIN_SECONDS)
                for child in children.all():
                    child.tend()
        except KeyboardInterrupt:
            say("Ending ...")
        finally:
            _signals_ignored()
            children.end()
            (data_dir / RUNNING_FILE).unlink(missing_ok=True)
            with suppress(OSError):
                socket_folder(data_dir).rmdir()


def _code_changes(*, reloads: bool) -> Iterator[list[Path]]:
    """Yield the changed files of the code every _LOOK_EVERY_SECONDS.

    Without `reloads`, the list is always empty.
    """
    if reloads:
        from app.cli.devserver.reload import code_changes, code_folders

        yield from code_changes(code_folders(), look_every_seconds=_LOOK_EVERY_SECONDS)
    while True:
        time.sleep(_LOOK_EVERY_SECONDS)
        yield []


def check_port(host: str, port: int, *, names: tuple[str, str] = ("--host", "--port")) -> int:
    """Return the port, or a free one for 0. Raises CommandFailed with the option's name if it is taken."""
    host_option, port_option = names
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            raise CommandFailed(f"Port {port} is taken. Choose another with {port_option}.") from None
        if err.errno == errno.EACCES:
            raise CommandFailed(
                f"Port {port} needs more rights. Choose one above 1023 with {port_option}."
            ) from None
        raise CommandFailed(
            f"Cannot listen on {host}, port {port}: {err}. See {host_option} and {port_option}."
        ) from None


def _make_data_dir(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise CommandFailed(f"Cannot make the data folder: {err}. Choose another with --data-dir.") from None
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise CommandFailed(f"The data folder {data_dir} is not writable. Choose another with --data-dir.")
    return data_dir.resolve()


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however this process ends. Raises CommandFailed."""
    with (data_dir / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(
                f"Another `calbridge up` runs on {data_dir}. End it first, or give this one a folder and a port of "
                "its own with --data-dir and --port."
            ) from None
        yield


async def _check_redis(url: str) -> None:
    """Check the configured Redis. Raises CommandFailed if it is unavailable."""
    wakeups = WakeUps(connect_redis(url))
    try:
        await wakeups.ping()
    except REDIS_UNAVAILABLE as err:
        raise CommandFailed(explain_redis_error(err)) from None
    finally:
        await wakeups.aclose()


def _start_servers(settings: Settings, data_dir: Path, base_url: str, servers: list[Child]) -> Settings:
    """Start the servers that are not configured, and return the settings with their addresses."""
    values: dict[str, Any] = {"demo_feed_url": base_url + DEMO_FEED_PATH}

    def keep(server: Server, again: partial[Server]) -> str:
        servers.append(Child(server.name, server.process, lambda: again().process, server.gentle))
        return server.url

    if settings.database_url is None:
        say(f"Starting PostgreSQL, its data in {data_dir} ...")
        start = partial(start_postgres, data_dir)
        values["database_url"] = keep(start(), start)
    if settings.redis_url is None:
        start = partial(start_redis, data_dir)
        values["redis_url"] = keep(start(), start)
    if not settings.fernet_keys:
        values["credentials_encryption_keys"] = _kept_encryption_keys(data_dir)
    if "app_url" not in settings.model_fields_set:
        # Google and Microsoft accept http redirect URIs for localhost. Microsoft's form does not accept 127.0.0.1.
        values["app_url"] = base_url.replace("//127.0.0.1:", "//localhost:")
    return load_settings(**values)


def _start_programs(settings: Settings, data_dir: Path, host: str, port: int, programs: list[Child]) -> None:
    env = {
        **os.environ,
        "DATABASE_URL": settings.required_database_url(),
        "REDIS_URL": settings.required_redis_url(),
        "CREDENTIALS_ENCRYPTION_KEYS": ",".join(settings.required_fernet_keys()),
        "APP_URL": settings.app_url,
        "DEMO_FEED_URL": settings.demo_feed_url or "",
        # The API's /metrics includes the worker's metrics.
        METRICS_DIRECTORY: str(empty_directory(data_dir / _METRICS_FOLDER)),
    }

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        # -P keeps a folder named `app` in the current folder from being imported.
        command = [sys.executable, "-P", "-m", "app.cli.main", *arguments]
        return spawn(command, env=env, output=sys.stderr.fileno(), death_signal=signal.SIGKILL)

    for name, arguments in {
        "The API": ("api", "--host", host, "--port", str(port)),
        "The worker": ("worker",),
    }.items():
        again = partial(start, *arguments)
        programs.append(Child(name, again(), again))


def _wait_until_ready(base_url: str, children: list[Child]) -> None:
    deadline = time.monotonic() + _READY_WITHIN_SECONDS
    last = "nothing"
    while time.monotonic() < deadline:
        for child in children:
            how = child.how_it_ended()
            if how is not None:
                raise CommandFailed(f"{child.name} ended ({how}) before everything was ready; see above.")
        connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", "/readyz?strict")
            response = connection.getresponse()
            last = response.read(2000).decode(errors="replace")
            if response.status == http.HTTPStatus.OK:
                return
        except (OSError, http.client.HTTPException) as err:
            last = str(err)
        finally:
            connection.close()
        time.sleep(_LOOK_EVERY_SECONDS)
    raise CommandFailed(f"Not ready after {_READY_WITHIN_SECONDS} seconds. /readyz says: {last}")


async def _demo_project(data_dir: Path, database_url: str) -> dict[str, str]:
    """Return `project_id` and `api_key` of the demo project.

    It is created if the stored key does not work.
    """
    path = data_dir / _DEMO_FILE
    engine = create_engine(database_url, pool_size=1)
    try:
        async with transaction(create_sessions(engine)) as session:
            if path.exists():
                kept: dict[str, str] = json.loads(path.read_text())
                key = await find_live_key(session, kept["api_key"])
                if key is not None and key.project_id == kept["project_id"]:
                    return kept
            new = await create_project(session, "demo")
    finally:
        await engine.dispose()
    made = {"project_id": new.project_id, "api_key": new.api_key}
    _write_secret(path, json.dumps(made))
    return made


def _kept_encryption_keys(data_dir: Path) -> str:
    path = data_dir / _KEYS_FILE
    if not path.exists():
        _write_secret(path, Fernet.generate_key().decode())
    return path.read_text().strip()


def _write_running(data_dir: Path, settings: Settings, base_url: str) -> None:
    running = Running(
        pid=os.getpid(),
        base_url=base_url,
        database_url=settings.required_database_url(),
        redis_url=settings.required_redis_url(),
        credentials_encryption_keys=",".join(settings.required_fernet_keys()),
        app_url=settings.app_url,
        demo_feed_url=settings.demo_feed_url,
    )
    _write_secret(data_dir / RUNNING_FILE, json.dumps(asdict(running)))


def _write_secret(path: Path, text: str) -> None:
    """Write the file completely or not at all. Only its owner can read it, from the first byte on."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _signals_interrupt() -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in _STOP_SIGNALS:
        signal.signal(number, interrupt)


def _signals_ignored() -> None:
    # The shutdown takes seconds and must not be interrupted. It has its own time limits.
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _reachable(host: str) -> str:
    """Return the host for a URL at which this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]" if ":" in host else host


def _welcome(started: dict[str, str], data_dir: Path) -> str:
    base_url, api_key = started["base_url"], started["api_key"]
    # There are no comments among the commands: when they are pasted, zsh (the shell of macOS) runs comments, too.
    curl = 'curl -sS -H "Authorization: Token $KEY"'
    # Because of the key, pasting the command again creates no second calendar.
    body = json.dumps(
        {"platform": "ics", "feed_url": base_url + DEMO_FEED_PATH, "deduplication_key": "sample"}
    )
    midnight = utcnow().replace(hour=0, minute=0, second=0, microsecond=0)
    week = json.dumps(
        {
            "calendars": ["sample"],
            "start": f"{midnight:%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{midnight + timedelta(days=7):%Y-%m-%dT%H:%M:%SZ}",
        }
    )
    return f"""
calbridge runs at {base_url} (API reference: {base_url}/docs). Ctrl-C stops it; the data is kept in {data_dir}

  project  {started["project_id"]} (demo)
  API key  {api_key}

Try it: paste all of this into another terminal. It connects a sample calendar (your own calendar's secret iCal address
also works), lists its events, and shows the state of its syncs: state, last_successful_sync_at, sync_failure.

KEY={api_key}

{curl} -X POST {base_url}/api/v1/calendars -H 'Content-Type: application/json' -d '{body}'; echo

sleep 3; {curl} '{base_url}/api/v1/calendar_events?ordering=start_time'; echo

{curl} {base_url}/api/v1/calendars; echo

Next: ask when the sample calendar is busy in the week from today on.

{curl} -X POST {base_url}/api/v1/free_busy -H 'Content-Type: application/json' -d '{week}'; echo

More commands to paste, with the same KEY: docs/availability.md (when people can meet), docs/changes.md (follow changes)
and docs/join-rules.md (bots by rules). README.md shows a receiver of webhooks. Feeds and webhooks must have public https
addresses, unless calbridge is started with ALLOW_PRIVATE_NETWORK_TARGETS=true: a receiver on this machine needs that.
`.venv/bin/calbridge doctor` checks the installation.
"""
