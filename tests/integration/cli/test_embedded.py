"""Embedded servers start on whatever an earlier run, however it ended, has left in the data folder."""

import asyncio
import os
from pathlib import Path

import asyncpg
import pytest
from redis import Redis

from app.cli.devserver import embedded
from app.cli.devserver.embedded import start_postgres, start_redis
from app.cli.errors import CommandFailed


@pytest.fixture
def data_dir(servers_dir):
    folder = servers_dir / "embedded"
    folder.mkdir(mode=0o711, exist_ok=True)
    return folder


def ask(url: str, statement: str) -> str:
    async def run() -> str:
        connection = await asyncpg.connect(url)
        try:
            return str(await connection.fetchval(statement))
        finally:
            await connection.close()

    with asyncio.Runner() as runner:
        return runner.run(run())


def test_postgres_starts_on_what_earlier_runs_left(data_dir):
    # A first start that was killed while it made the cluster.
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").write_text("18\n")
    first = start_postgres(data_dir, durable=False)
    ask(first.url, "CREATE TABLE kept AS SELECT 42 AS number")

    # Its parent has ended, it has not: the next start takes over.
    second = start_postgres(data_dir, durable=False)
    assert first.process.wait(10) == 0
    assert ask(second.url, "SELECT number FROM kept") == "42"
    second.stop()
    assert second.process.returncode == 0

    # After a reboot its number may be that of any process, here of this one.
    (data_dir / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n{data_dir / 'postgres'}\n")
    third = start_postgres(data_dir, durable=False)
    assert ask(third.url, "SELECT number FROM kept") == "42"
    third.stop()


def test_data_of_another_version_are_left_alone(data_dir):
    cluster = data_dir / "other" / "postgres"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("16\n")
    with pytest.raises(CommandFailed, match=r"made by PostgreSQL 16.*--data-dir"):
        start_postgres(cluster.parent)


def test_redis_keeps_nothing_and_takes_over_from_one_left_behind(data_dir):
    first = start_redis(data_dir)
    with Redis.from_url(first.url) as client:
        client.set("key", "value")
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "no"
    second = start_redis(data_dir)
    assert first.process.wait(10) == 0
    with Redis.from_url(second.url) as client:
        assert client.get("key") is None
    second.stop()


def test_sockets_are_closed_to_others_and_their_path_is_short_and_plain(data_dir):
    assert embedded.socket_folder(data_dir) == data_dir / "run"
    for awkward in (data_dir / "with space", data_dir / ("d" * 90), data_dir / "a?b"):
        folder = embedded.socket_folder(awkward)
        assert len(str(folder)) < 80
        assert " " not in str(folder)
        assert folder != embedded.socket_folder(awkward / "another")
    server = start_redis(data_dir)
    folder = Path(server.url.removeprefix("unix://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    server.stop()


def test_without_a_redis_to_embed_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(embedded, "_package_folder", lambda package: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CommandFailed, match=r"apt install redis-server.*REDIS_URL"):
        embedded.redis_binary()
    with pytest.raises(CommandFailed, match="DATABASE_URL"):
        embedded.postgres_binaries()
