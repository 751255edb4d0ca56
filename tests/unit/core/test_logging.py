"""What a log line of an exception holds, in both forms."""

import subprocess
import sys

import pytest

_PROGRAM = """
import logging, sys
import structlog
from app.core.logging import configure_logging

configure_logging(json=sys.argv[1] == "json")

def call(authorization):
    raise ValueError("broken")

for log in (structlog.get_logger(), logging.getLogger("uvicorn.error")):
    try:
        call("Token hunter2")
    except ValueError:
        log.exception("failed")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_says_where_and_holds_no_variables(form):
    done = subprocess.run([sys.executable, "-c", _PROGRAM, form], capture_output=True, text=True, check=True)
    # Quoted source lines of a program on the command line are none: only variables could hold it.
    assert "hunter2" not in done.stderr
    assert done.stderr.count("ValueError") >= 2
    assert done.stderr.count("call") >= 2
