"""Turns: what takes long is done for a few at a time, and for one project or account after another."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Of the interpreter's own threads, names are resolved: a long computation must not hold them up.
_THREADS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="availability")
_computing: "Shared" = {}

Shared = dict[str, tuple[asyncio.Semaphore, int]]


@asynccontextmanager
async def shared(kept: Shared, name: str, at_once: int) -> AsyncIterator[None]:
    """The semaphore of this name, which exists while it is held or waited for."""
    semaphore, users = kept.get(name, (asyncio.Semaphore(at_once), 0))
    kept[name] = (semaphore, users + 1)
    try:
        async with semaphore:
            yield
    finally:
        semaphore, users = kept.pop(name)
        if users > 1:
            kept[name] = (semaphore, users - 1)


async def compute(project_id: str, work: Callable[_P, _T], *values: _P.args, **named: _P.kwargs) -> _T:
    """Run `work` in a thread, one at a time for a project. The caller holds no session."""
    async with shared(_computing, project_id, 1):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_THREADS, lambda: work(*values, **named))
