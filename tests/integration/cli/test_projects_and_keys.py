"""`calbridge project` and `calbridge api-key`."""

import asyncio
import json
from typing import Any

import pytest

from app.core.db import create_engine, create_sessions, reading
from app.projects.service import find_live_key
from tests.commands import calbridge


async def project_of_key(database_url: str, api_key: str) -> str | None:
    engine = create_engine(database_url)
    async with reading(create_sessions(engine)) as session:
        found = await find_live_key(session, api_key)
    await engine.dispose()
    return found.project_id if found is not None else None


async def test_from_an_empty_database_to_a_disabled_key(empty_database_url):
    def command(*arguments: str) -> dict[str, str]:
        done = calbridge(*arguments, DATABASE_URL=empty_database_url)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        response: dict[str, str] = json.loads(done.stdout)
        return response

    migrated = calbridge("migrate", DATABASE_URL=empty_database_url)
    assert (migrated.returncode, migrated.stdout) == (0, "")

    made = command("project", "create", "Größe; DROP TABLE projects")
    assert set(made) == {"project_id", "api_key", "key_id"}
    assert made["project_id"].startswith("proj_")
    assert await project_of_key(empty_database_url, made["api_key"]) == made["project_id"]

    second = command("api-key", "create", made["project_id"], "--name", "second")
    assert second["key_id"].startswith("key_")
    assert await project_of_key(empty_database_url, second["api_key"]) == made["project_id"]

    command("api-key", "disable", second["key_id"])
    assert await project_of_key(empty_database_url, second["api_key"]) is None
    assert await project_of_key(empty_database_url, made["api_key"]) == made["project_id"]


async def test_projects_and_keys_are_listed_and_the_first_key_can_be_disabled(api, project, database_url):
    def command(*arguments: str) -> list[dict[str, Any]]:
        done = calbridge(*arguments, DATABASE_URL=database_url)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    (made,) = command("project", "create", " Two words ")
    assert set(made) == {"project_id", "api_key", "key_id"}
    listed = command("project", "list", "--json")
    assert [(row["project_id"], row["name"], row["live_keys"]) for row in listed] == [
        (project.id, "test", 1),
        (made["project_id"], "Two words", 1),
    ]
    table = calbridge("api-key", "list", DATABASE_URL=database_url).stdout
    assert [line.split()[0] for line in table.splitlines()][0::2] == ["key_id", made["key_id"]]
    assert "Two words" in table
    assert made["api_key"] not in table

    # Seen by the API, which writes it down beside the request.
    (unused,) = command("api-key", "list", project.id, "--json")
    assert unused["last_used_at"] is None
    assert (await api.get("/api/v1/calendars")).status_code == 200
    for _ in range(60):
        (used,) = await asyncio.to_thread(command, "api-key", "list", project.id, "--json")
        if used["last_used_at"] is not None:
            break
    assert used["last_used_at"] >= used["created_at"]

    command("api-key", "disable", used["key_id"])
    (disabled,) = command("api-key", "list", project.id, "--json")
    assert disabled["disabled_at"] is not None
    assert (await api.get("/api/v1/calendars")).status_code == 401
    assert command("project", "list", "--json")[0]["live_keys"] == 0


@pytest.mark.parametrize(
    "command",
    [
        ("project", "create", " "),
        ("api-key", "create", "proj_x", "--name", ""),
        ("project", "create", "a\nb"),
    ],
)
def test_unreadable_names_are_refused(database_url, command):
    done = calbridge(*command, DATABASE_URL=database_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("name: A name ")


def test_an_unknown_id_is_a_sentence_and_1(database_url):
    done = calbridge("api-key", "create", "proj_unknown", DATABASE_URL=database_url)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (1, "", "Project not found")
