"""The commands as processes of their own: what they print when they fail, and their exit codes."""

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core.db import create_engine
from migrations.revisions import head_revision
from tests.commands import NOWHERE, calbridge
from tests.conftest import FERNET_KEY

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("command", [["migrate"], ["worker"], ["up"]])
def test_wrong_settings_end_every_command_with_2_and_a_line_for_each(command):
    done = calbridge(*command, DATABASE_URL="mysql://hunter2", LOG_LEVEL="LOUD")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["DATABASE_URL", "LOG_LEVEL"]
    assert "hunter2" not in done.stderr


def test_missing_settings_are_reported_all_at_once():
    done = calbridge("api")
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        "DATABASE_URL",
        "REDIS_URL",
        "CREDENTIALS_ENCRYPTION_KEYS",
    ]


@pytest.mark.parametrize("command", [["migrate"], ["project", "create", "x"]])
def test_a_database_that_is_unavailable_is_a_sentence_and_1(command):
    done = calbridge(*command, DATABASE_URL=NOWHERE)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Check DATABASE_URL" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_database_without_tables_asks_for_migrate(empty_database_url):
    done = calbridge("project", "create", "x", DATABASE_URL=empty_database_url)
    assert done.returncode == 1
    assert "run `calbridge migrate`" in done.stderr


async def test_going_back_to_an_older_release_is_a_sentence(empty_database_url):
    for _ in range(2):
        done = calbridge("migrate", DATABASE_URL=empty_database_url)
        assert (done.returncode, done.stderr) == (0, "The schema is at the newest revision.\n")
    engine = create_engine(empty_database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'ofthefuture'"))
    await engine.dispose()
    done = calbridge("migrate", DATABASE_URL=empty_database_url)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "The schema is at revision ofthefuture, which a newer release than this one has made; this one works with it.\n"
    )


def test_up_says_at_once_that_redis_is_unavailable(empty_database_url):
    done = calbridge(
        "up", "--port", "0", DATABASE_URL=empty_database_url, REDIS_URL="redis://:hunter2@127.0.0.1:1"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Redis cannot be used: ")
    assert "Check REDIS_URL" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", ["api", "up"])
def test_a_taken_port_names_the_option(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = calbridge(
            command,
            "--port",
            str(port),
            DATABASE_URL=NOWHERE,
            REDIS_URL="redis://127.0.0.1:1",
            CREDENTIALS_ENCRYPTION_KEYS=FERNET_KEY,
        )
    assert done.returncode == 1
    assert done.stderr.strip() == f"Port {port} is taken. Choose another with --port."


def test_the_version_is_printed():
    done = calbridge("--version")
    assert (done.returncode, done.stdout) == (0, f"calbridge {version('calbridge')}\n")


async def test_a_user_without_rights_is_shown_the_grant(empty_database_url):
    engine = create_engine(empty_database_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE ROLE plain LOGIN"))
    try:
        done = calbridge("migrate", DATABASE_URL=empty_database_url.replace("calbridge@", "plain@"))
    finally:
        async with engine.begin() as connection:
            await connection.execute(text("DROP ROLE plain"))
        await engine.dispose()
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "permission denied for schema public" in done.stderr
    assert "GRANT USAGE, CREATE ON SCHEMA public TO the user of DATABASE_URL" in done.stderr


def alembic(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", "--config", str(ROOT / "alembic.ini"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_alembic_says_which_setting_is_missing():
    done = alembic("current")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "DATABASE_URL is not set" in done.stdout + done.stderr


def test_commands_beside_a_running_up_need_no_settings(tmp_path, database_url, redis_url):
    """`up` holds a lock and writes what it works with into its data folder; see tests/flows/cli/test_up.py."""
    import fcntl

    data_dir = Path(".data")
    data_dir.mkdir()
    (data_dir / "up.json").write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "base_url": "http://127.0.0.1:8123",
                "app_url": "http://127.0.0.1:8123",
                "demo_feed_url": "http://127.0.0.1:8123/demo/calendar.ics",
                "database_url": database_url,
                "redis_url": redis_url,
                "credentials_encryption_keys": FERNET_KEY,
            }
        )
    )
    with (data_dir / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = calbridge("project", "create", "x")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["project_id"].startswith("proj_")
        assert str(head_revision()) in alembic("current").stdout
        # A worker beside it reads the same feed, and mails links to the same API.
        print_settings = "from app.cli.database import command_settings; s = command_settings('fernet_keys'); print(s.app_url, s.demo_feed_url)"
        reported = subprocess.run(
            [sys.executable, "-c", print_settings], capture_output=True, text=True, check=True
        ).stdout
        assert reported == "http://127.0.0.1:8123 http://127.0.0.1:8123/demo/calendar.ics\n"
        assert "APP_URL http://127.0.0.1:8123" in calbridge("doctor").stdout
    # Without the lock the file is what a killed `up` left behind.
    assert calbridge("project", "create", "x").returncode == 2
