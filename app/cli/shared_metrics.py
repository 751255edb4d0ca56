"""A folder in which several processes keep their metrics, so that any of them can give the totals.

prometheus_client keeps a small file for each process and sums them up at a scrape, see `app.core.metrics.render`.
This module must not import it: it reads the variable when it is first imported.
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
    """The folder, made where it is missing, without the files of processes that ran before."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in directory.glob("*.db"):
        path.unlink()
    return directory


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Makes the folder for the processes that are started within the block, and removes it at the end.

    Where PROMETHEUS_MULTIPROC_DIR is set already, that folder is used and left alone.
    """
    if os.environ.get(VARIABLE):
        yield
        return
    prefix = f"calbridge-metrics-{os.geteuid()}-"
    _remove_leftovers(prefix)
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    unnamed = directory / "lock.new"
    with unnamed.open("w") as lock:
        # The system gives it back however this process ends: the next start knows the folder for a leftover.
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
