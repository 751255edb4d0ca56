"""Which loops of a worker are late."""

import asyncio

import pytest

from workers import liveness


@pytest.fixture(autouse=True)
def _nothing_expected():
    liveness.expect(())
    yield
    liveness.expect(())


def test_a_loop_that_reports_is_not_late() -> None:
    liveness.report("syncs", within_seconds=60)
    assert liveness.late() == {}


def test_a_loop_without_a_heartbeat_is_late() -> None:
    liveness.report("syncs", within_seconds=60)
    liveness.report("mails", within_seconds=-1)
    assert set(liveness.late()) == {"mails"}
    liveness.report("mails", within_seconds=60)
    assert liveness.late() == {}


def test_a_loop_that_never_reported_is_late() -> None:
    liveness.expect(["syncs", "mails"], within_seconds=-1)
    liveness.report("mails", within_seconds=60)
    assert set(liveness.late()) == {"syncs"}


async def test_a_blocked_event_loop_is_late(monkeypatch) -> None:
    monkeypatch.setattr(liveness, "_EVENT_LOOP_WITHIN_SECONDS", -1)
    watching = asyncio.create_task(liveness.watch_event_loop())
    await asyncio.sleep(0)
    assert set(liveness.late()) == {"event_loop"}
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
