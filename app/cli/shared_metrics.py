"""The folder in which several processes keep their metrics, so that each of them can serve the totals.

prometheus_client keeps one file per process and adds them up at a scrape (`app.core.metrics.render`). This module must
not import it, since it reads the variable at its first import.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_LOCK_FILE = "lock"


def empty_directory(directory: Path) -> Path:
    """Create the folder if it is missing, and delete the files of earlier processes."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in directory.glob("*.db"):
        path.unlink()
    return directory


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Create a folder for the processes that are started within the block, and delete it at the end.

    If PROMETHEUS_MULTIPROC_DIR is set, that folder is used and not deleted.
    """
    if os.environ.get(VARIABLE):
        yield
        return
    prefix = f"calbridge-metrics-{os.geteuid()}-"
    _remove_leftovers(prefix)
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    unnamed = directory / "lock.new"
    with unnamed.open("w") as lock:
        # The system releases the lock however this process ends, so the next start recognizes a leftover folder.
        fcntl.flock(lock, fcntl.LOCK_EX)
        unnamed.rename(directory / _LOCK_FILE)
        os.environ[VARIABLE] = str(directory)
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            shutil.rmtree(directory, ignore_errors=True)


def _remove_leftovers(prefix: str) -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError), (directory / _LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
