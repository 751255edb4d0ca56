"""Looking up the key of a request, and what it leaves behind: the time of its use, and its id in the log."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import event, func, select, update
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from app.core.db import reading, transaction
from app.models import ApiKey
from app.projects import service
from app.projects.service import KeyCheck, disable_api_key


@pytest.fixture
async def keys(sessions):
    keys = KeyCheck(sessions, sessions)
    yield keys
    await keys.aclose()


async def last_used(sessions, project):
    async with reading(sessions) as session:
        return await session.scalar(select(ApiKey.last_used_at).where(ApiKey.project_id == project.id))


async def set_last_used(sessions, project, **ago):
    async with transaction(sessions) as session:
        await session.execute(
            update(ApiKey)
            .where(ApiKey.project_id == project.id)
            .values(last_used_at=func.now() - timedelta(**ago))
        )
    return await last_used(sessions, project)


async def test_a_use_is_written_once_a_minute_and_beside_the_request(sessions, project, keys):
    found = [await keys.find(project.api_key) for _ in range(20)]
    assert {key.project_id for key in found} == {project.id}
    await keys.aclose()
    first = await last_used(sessions, project)
    assert first is not None

    recent = await set_last_used(sessions, project, seconds=50)
    await keys.find(project.api_key)
    await keys.aclose()
    assert await last_used(sessions, project) == recent

    old = await set_last_used(sessions, project, seconds=70)
    await keys.find(project.api_key)
    await keys.aclose()
    assert await last_used(sessions, project) > old + timedelta(seconds=60)


async def test_a_locked_key_holds_up_no_request(sessions, project, keys):
    async with transaction(sessions) as holder:
        await holder.execute(select(ApiKey).where(ApiKey.project_id == project.id).with_for_update())
        assert (await keys.find(project.api_key)).project_id == project.id
        with capture_logs() as logs:
            await keys.aclose()  # ends while the lock is held
        assert logs == []
    assert await last_used(sessions, project) is None


async def test_log_lines_of_a_request_name_project_key_and_client(api, project, sessions):
    async with reading(sessions) as session:
        key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.project_id == project.id))).one()
    with capture_logs(processors=[merge_contextvars]) as logs:
        await api.get("/api/v1/calendars", params={"deduplication_key": "hunter2"})
        await api.get("/api/v1/calendars", headers={"Authorization": "Token wrong"})
    known, unknown = [log for log in logs if log["event"] == "request"]
    assert (known["project_id"], known["key_id"], known["client"]) == (project.id, key_id, "127.0.0.1")
    # Nothing of the request before.
    assert "project_id" not in unknown
    assert unknown["client"] == "127.0.0.1"
    assert "hunter2" not in str(logs)
    assert project.api_key not in str(logs)


async def test_requests_of_one_key_at_once_share_look_ups(engine, project, other_project, keys):
    statements = []

    def note(_connection, _cursor, statement, *_rest):
        statements.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    wanted = [project, other_project] * 100
    found = await asyncio.gather(*(keys.find(one.api_key) for one in wanted))
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert [key.project_id for key in found] == [one.id for one in wanted]
    assert len([statement for statement in statements if statement.lstrip().startswith("SELECT")]) <= 4
    await keys.aclose()
    assert not keys._running
    assert not keys._next


async def test_a_look_up_that_began_before_is_not_shared(sessions, project, keys, monkeypatch):
    """A request that comes after its key was disabled is refused, whatever look-up is still under way."""
    went_on = asyncio.Event()
    look = service.find_live_key

    async def look_slowly(session, api_key):
        found = await look(session, api_key)
        await went_on.wait()
        return found

    monkeypatch.setattr(service, "find_live_key", look_slowly)
    before = [asyncio.create_task(keys.find(project.api_key)) for _ in range(2)]
    await asyncio.sleep(0.1)
    async with transaction(sessions) as session:
        key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.project_id == project.id))).one()
        await disable_api_key(session, key_id)
    after = asyncio.create_task(keys.find(project.api_key))
    before[1].cancel()  # of which the others notice nothing
    await asyncio.sleep(0.05)
    went_on.set()
    assert (await before[0]).id == key_id
    assert await after is None
