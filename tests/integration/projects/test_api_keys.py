"""What a request's key leaves behind: the time of its use, and its id in the log."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from app.core.db import reading, transaction
from app.models import ApiKey
from app.projects.service import KeyCheck


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
        key_id = await session.scalar(select(ApiKey.id).where(ApiKey.project_id == project.id))
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
