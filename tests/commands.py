"""Run a command of `calbridge` as a process of its own."""

import json
import os
import subprocess
import sys
from typing import Any

# A database that refuses connections, with a password that no output may show.
NOWHERE = "postgresql://ada:hunter2@127.0.0.1:1/database"


def calbridge(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these settings added to the environment, and return its exit code and output."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_json_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the line that the command has printed with `--json`."""
    (line,) = done.stdout.splitlines()
    values: dict[str, Any] = json.loads(line)
    return values
