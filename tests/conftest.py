"""What the tests stand on: a real PostgreSQL and Redis for each test process, emptied before each test.

Fixtures
    database_url   a migrated database with empty tables
    redis_url      an empty Redis
    settings       for both; other values with `@pytest.mark.settings(name=value, ...)`
    engine, sessions
    project, other_project   with `.id` and `.api_key`
    app            the application, its lifespan running
    api, other_api  HTTP clients of `app` with the key of `project`, of `other_project`
    start_worker   `await start_worker()` runs a worker in this test's loop, as often as wanted
    worker         one worker, running

The application is imported inside the fixtures: a test that needs none of them does not pay for it.
"""

import asyncio
import contextlib
import ipaddress
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncEngine

    from app.core.db import Sessions
    from app.settings import Settings
    from tests.fakes.messages import FakeMessages

# A failed assert of a helper module shows its values too, as in test files and conftest.py.
pytest.register_assert_rewrite("tests.flows", "tests.integration", "tests.unit")

FERNET_KEY = "K94Mn03QAYGUVStxA2g8fZysKAn7CpjphF4qg0CsNzE="
_TEMPLATE = "calbridge_template"

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex


@dataclass(frozen=True)
class TestProject:
    __test__ = False

    id: str
    api_key: str


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "changes_schema: the test gets a database that is thrown away after it"
    )
    config.addinivalue_line("markers", "settings(**values): values of the `settings` fixture for this test")
    config.addinivalue_line("markers", "clients: generates clients; `make test-clients` runs these")
    config.addinivalue_line("markers", "processor_time: bounds processor time, which `make cov` multiplies")
    config.addinivalue_line("markers", "long: takes half a minute or more: `make test-long`")
    config.addinivalue_line("markers", "browser: drives a Chromium; `make test-browser` runs these")


# -- no test reaches another machine ------------------------------------------------------------------------


def _refuse_other_machines(connecting: socket.socket, address: Any) -> None:
    if connecting.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = str(address[0])
    if host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return
    connecting.close()
    raise RuntimeError(f"A test tried to connect to {host}: tests stay on this machine.")


def _guarded_connect(self: socket.socket, address: Any) -> None:
    _refuse_other_machines(self, address)
    _connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any) -> int:
    _refuse_other_machines(self, address)
    return _connect_ex(self, address)


@pytest.fixture(scope="session", autouse=True)
def _only_this_machine() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", _guarded_connect)
    patch.setattr(socket.socket, "connect_ex", _guarded_connect_ex)
    yield
    patch.undo()


# -- servers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """A short path: sockets have no room for pytest's own temporary folders."""
    folder = Path(tempfile.mkdtemp(prefix="calbridge-test-"))
    folder.chmod(0o711)  # as root, PostgreSQL runs as another account
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_server(servers_dir: Path) -> Iterator[str]:
    """URL of the test process's Redis."""
    from app.cli.devserver.embedded import start_redis

    server = start_redis(servers_dir)
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(servers_dir: Path) -> Iterator[str]:
    """Folder of the socket of the test process's PostgreSQL, with a migrated template database."""
    from app.cli.devserver.embedded import start_postgres
    from migrations.revisions import upgrade_to_head

    server = start_postgres(servers_dir, durable=False)
    sockets = server.url.partition("?host=")[2]
    _sql(sockets, f"CREATE DATABASE {_TEMPLATE}")
    upgrade_to_head(_url(sockets, _TEMPLATE))
    yield sockets
    server.stop()


def _sql(sockets: str, statement: str, *, database: str = "postgres") -> None:
    """Outside any event loop and transaction."""
    from app.cli.devserver.embedded import postgres_binaries

    subprocess.run(
        [postgres_binaries() / "psql", "-h", sockets, "-U", "calbridge", "-d", database, "-qXc", statement],
        check=True,
        capture_output=True,
        env={"PATH": os.environ.get("PATH", "")},
    )


def _url(sockets: str, database: str) -> str:
    return f"postgresql://calbridge@/{database}?host={sockets}"


@pytest.fixture
def empty_database_url(postgres_server: str) -> Iterator[str]:
    """A database without any table."""
    _sql(postgres_server, "CREATE DATABASE empty")
    yield _url(postgres_server, "empty")
    _sql(postgres_server, "DROP DATABASE empty WITH (FORCE)")


@pytest.fixture(scope="module")
def own_database_url(postgres_server: str) -> Iterator[str]:
    """A migrated database for all tests of a module, which fills it once."""
    _sql(postgres_server, f"CREATE DATABASE own TEMPLATE {_TEMPLATE}")
    yield _url(postgres_server, "own")
    _sql(postgres_server, "DROP DATABASE own WITH (FORCE)")


# Only what the last test wrote into: truncating a table makes new files for it and each of its indexes.
_EMPTY = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend';
DO $$
DECLARE
    name text;
    has_rows boolean;
    used text[] := '{}';
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', name) INTO has_rows;
        IF has_rows THEN used := used || quote_ident(name); END IF;
    END LOOP;
    IF cardinality(used) > 0 THEN EXECUTE 'TRUNCATE ' || array_to_string(used, ', ') || ' CASCADE'; END IF;
END $$;
"""


@pytest.fixture(scope="session")
def migrated_database(postgres_server: str) -> str:
    """The one database that the tests of this process use, one after the other."""
    _sql(postgres_server, f"CREATE DATABASE test TEMPLATE {_TEMPLATE}")
    return _url(postgres_server, "test")


@pytest.fixture
def database_url(
    request: pytest.FixtureRequest, postgres_server: str, migrated_database: str
) -> Iterator[str]:
    """A migrated database with empty tables."""
    if request.node.get_closest_marker("changes_schema") is None:
        _sql(postgres_server, _EMPTY, database="test")
        yield migrated_database
        return
    _sql(postgres_server, f"CREATE DATABASE changed TEMPLATE {_TEMPLATE}")
    yield _url(postgres_server, "changed")
    _sql(postgres_server, "DROP DATABASE changed WITH (FORCE)")


@pytest.fixture
def redis_url(redis_server: str) -> str:
    from redis import Redis

    with Redis.from_url(redis_server) as redis:
        redis.flushall()
    return redis_server


# -- the application ----------------------------------------------------------------------------------------


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No setting of the developer's own: neither a variable nor a `.env` (the test runs in `tmp_path`)."""
    from app.settings import Settings

    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


@pytest.fixture
def settings(
    request: pytest.FixtureRequest,
    clean_environment: pytest.MonkeyPatch,
    database_url: str,
    redis_url: str,
) -> "Settings":
    from app.settings import Settings

    values: dict[str, Any] = {
        "database_url": database_url,
        "redis_url": redis_url,
        "app_url": "http://testserver",
        "credentials_encryption_keys": FERNET_KEY,
        "allow_private_network_targets": True,
        "scheduler_tick_seconds": 0.05,
        "calendar_push_debounce_seconds": 0.1,
        "webhook_retry_schedule_seconds": (0.1, 0.1, 0.1),
        "webhook_timeout_seconds": 2,
    }
    for marker in reversed(list(request.node.iter_markers("settings"))):  # the nearest one last: it wins
        values |= marker.kwargs
    return Settings(**values)


@pytest.fixture
async def fake_messages(settings: "Settings") -> AsyncIterator["FakeMessages"]:
    """A Messages that the settings lead to. Ask for it before `app`, which reads them."""
    from pydantic import SecretStr

    from tests.fakes.messages import FakeMessages
    from tests.fakes.server import serve

    fake = FakeMessages()
    async with serve(fake) as url:
        settings.feature_messages_integration = True
        settings.messages_api_url = url
        settings.messages_api_key = SecretStr(fake.api_key)
        settings.messages_channel_id = fake.channel_id
        yield fake


@pytest.fixture
async def engine(settings: "Settings") -> AsyncIterator["AsyncEngine"]:
    from app.core.db import create_engine

    engine = create_engine(settings.required_database_url())
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: "AsyncEngine") -> "Sessions":
    from app.core.db import create_sessions

    return create_sessions(engine)


async def _make_project(sessions: "Sessions", name: str) -> TestProject:
    from app.core.db import transaction
    from app.projects.service import create_project

    async with transaction(sessions) as session:
        new = await create_project(session, name)
        return TestProject(new.project_id, new.api_key)


@pytest.fixture
async def project(sessions: "Sessions") -> TestProject:
    return await _make_project(sessions, "test")


@pytest.fixture
async def other_project(sessions: "Sessions") -> TestProject:
    return await _make_project(sessions, "other")


@contextlib.asynccontextmanager
async def _lifespan(app: "FastAPI") -> AsyncIterator[None]:
    """Entered and left in one task, as a server does it; a fixture's two halves run in different ones."""
    started, stopping = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.router.lifespan_context(app):
            started.set()
            await stopping.wait()

    task = asyncio.create_task(live())
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not started.is_set():
        waiting.cancel()
        await task  # raises what went wrong
    try:
        yield
    finally:
        stopping.set()
        await task


@pytest.fixture
async def app(settings: "Settings") -> AsyncIterator["FastAPI"]:
    from app.main import create_app

    app = create_app(settings)
    async with _lifespan(app):
        yield app


def _client(app: "FastAPI", api_key: str) -> "httpx.AsyncClient":
    from app.core.http import httpx

    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://testserver",
        headers={"Authorization": f"Token {api_key}"},
        timeout=10,
    )


@pytest.fixture
async def api(app: "FastAPI", project: TestProject) -> AsyncIterator["httpx.AsyncClient"]:
    async with _client(app, project.api_key) as client:
        yield client


@pytest.fixture
async def other_api(app: "FastAPI", other_project: TestProject) -> AsyncIterator["httpx.AsyncClient"]:
    async with _client(app, other_project.api_key) as client:
        yield client


StartWorker = Callable[..., Awaitable["asyncio.Task[None]"]]


@pytest.fixture
async def start_worker(settings: "Settings") -> AsyncIterator[StartWorker]:
    """`await start_worker(other_settings=None)` gives the worker's task; it is cancelled at the end."""
    from workers.process import run_worker

    tasks: list[asyncio.Task[None]] = []

    async def start(other_settings: "Settings | None" = None) -> "asyncio.Task[None]":
        task = asyncio.create_task(run_worker(other_settings or settings))
        tasks.append(task)
        return task

    yield start
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


@pytest.fixture
async def worker(start_worker: StartWorker) -> "asyncio.Task[None]":
    return await start_worker()
