"""Detection of code changes, for `calbridge up --reload`."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from watchfiles import Change, DefaultFilter, watch

# Templates are read when the process starts, like code.
_ENDINGS = (".py", ".html", ".txt", ".json")


class _Code(DefaultFilter):
    def __call__(self, change: Change, path: str) -> bool:
        return path.endswith(_ENDINGS) and super().__call__(change, path)


def code_folders() -> list[Path]:
    """Return the folders of the packages that the API and the worker import."""
    found = (find_spec(name) for name in ("app", "workers"))
    return [Path(spec.origin).parent for spec in found if spec is not None and spec.origin is not None]


def code_changes(folders: list[Path], *, look_every_seconds: float) -> Iterator[list[Path]]:
    """Yield the files that changed since the last time, often none. Raises KeyboardInterrupt at a signal."""
    changes = watch(
        *folders,
        watch_filter=_Code(),
        rust_timeout=round(look_every_seconds * 1000),
        yield_on_timeout=True,
    )
    for found in changes:
        yield sorted({Path(path) for _, path in found})
