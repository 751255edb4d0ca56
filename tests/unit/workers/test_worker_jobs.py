"""arq's two jobs wake loops, and do nothing that takes time."""

import pytest

from app.core.wakeups import redis_settings
from workers import process
from workers.process import JOB_OPTIONS, Running


class Loop:
    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def running():
    return Running({name: Loop() for name in ("syncs", "feeds", "mails")}, Loop(), Loop())  # type: ignore[arg-type,misc] # a double that counts


def woken(running) -> set[str]:
    return {name for name, loop in running.loops.items() if loop.wakes}


@pytest.mark.parametrize(
    ("queue", "names"),
    [("mails", {"mails"}), ("syncs", {"syncs", "feeds"}), ("of_a_newer_release", set())],
)
async def test_a_wake_up_reaches_the_loops_of_its_queue(running, queue, names):
    await process.wake({"running": running}, queue)
    assert woken(running) == names
    assert not running.pruning.wakes


async def test_a_change_of_an_event_that_starts_soon_has_them_looked_at(running):
    await process.wake({"running": running}, "starting_soon")
    assert running.starting.wakes == 1
    assert woken(running) == set()


async def test_the_cron_job_has_one_worker_prune(running):
    await process.prune_expired({"running": running})
    assert running.pruning.wakes == 1
    assert woken(running) == set()


def test_no_job_may_take_long():
    """For as long as the slowest may take, arq holds back the wake-ups of a worker that was killed."""
    jobs = [*JOB_OPTIONS["functions"], *JOB_OPTIONS["cron_jobs"]]
    assert {job.name for job in jobs} == {"wake", "prune_expired"}
    assert all(job.timeout_s <= 5 for job in jobs)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"host": "h", "port": 6379, "database": 0, "password": None, "ssl": False}),
        ("redis://:p%40ss@h:7/3", {"host": "h", "port": 7, "database": 3, "password": "p@ss"}),
        ("rediss://u:p@h/1?ssl_ca_certs=/x", {"username": "u", "ssl": True, "ssl_ca_certs": "/x"}),
        ("unix:///run/redis.sock?db=2", {"unix_socket_path": "/run/redis.sock", "database": 2}),
    ],
)
def test_arq_connects_to_redis_url(url, expected):
    settings = redis_settings(url)
    assert {name: getattr(settings, name) for name in expected} == expected
