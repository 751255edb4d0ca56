"""A supervisor kills a process that does not stop in time: ending must not take that long."""

import re
from pathlib import Path

from app.providers.ics import readers as feed_readers
from workers import process, work_loop

ROOT = Path(__file__).parents[3]


def test_a_worker_ends_before_it_is_killed() -> None:
    granted = re.search(r"stop_grace_period: (\d+)s", (ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert granted
    longest = (
        process._CANCEL_TIMES * process._CANCEL_TIMEOUT_SECONDS
        + process._FINISH_TIMEOUT_SECONDS
        + work_loop._CANCEL_TIMEOUT_SECONDS
        + feed_readers._END_WITHIN_SECONDS
    )
    assert longest <= int(granted[1]) - 5


def test_the_api_ends_before_docker_kills_it() -> None:
    """Docker grants 10 s."""
    source = (ROOT / "app/cli/main.py").read_text(encoding="utf-8")
    waits = re.search(r"timeout_graceful_shutdown=(\d+)", source)
    assert waits
    assert int(waits[1]) <= 8
