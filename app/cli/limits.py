"""Limits of the operating system for this process and its children."""

import resource
from contextlib import suppress

_OPEN_FILES = 16_384


def allow_many_connections() -> None:
    """Raise the limit of open files as far as allowed. Each waiting client is an open connection.

    The usual limit of 1,024 is meant for programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has a limit of its own below the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
