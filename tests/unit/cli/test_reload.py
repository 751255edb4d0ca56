"""`calbridge up --reload`: what counts as a change, and the processes that follow it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from app.cli.devserver.reload import code_changes, code_folders
from app.cli.devserver.supervisor import Child, end_together, restart_together


def next_change(changes: Iterator[list[Path]]) -> list[Path]:
    return next(found for found in changes if found)


def test_changes_of_code_and_templates_are_seen_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    changes = code_changes([tmp_path], look_every_seconds=0.05)
    assert next(changes) == []
    for name in ("notes.md", "x.py~", "__pycache__/x.py", "mail.html"):
        (tmp_path / name).write_text("x")
    assert next_change(changes) == [tmp_path / "mail.html"]
    (tmp_path / "service.py").write_text("x")
    assert next_change(changes) == [tmp_path / "service.py"]


def test_the_code_of_the_api_and_the_worker_is_watched() -> None:
    root = Path(__file__).parents[3]
    assert code_folders() == [root / "app", root / "workers"]


def test_processes_are_replaced_also_one_that_waits_after_a_failure() -> None:
    def start(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code])

    steady = Child(
        "steady", start("import time; time.sleep(600)"), lambda: start("import time; time.sleep(600)")
    )
    failing = Child("failing", start("raise SystemExit(3)"), lambda: start("import time; time.sleep(600)"))
    before = [steady.process, failing.process]
    failing.process.wait(30)
    failing.tend()
    try:
        restart_together([steady, failing], 30)
        assert [process.returncode for process in before] == [-signal.SIGTERM, 3]
        assert [child.how_it_ended() for child in (steady, failing)] == [None, None]
        kept = failing.process
        time.sleep(0.6)  # longer than the pause before the start that was planned
        failing.tend()
        assert failing.process is kept
    finally:
        end_together([steady, failing], 30)
