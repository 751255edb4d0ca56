"""Supervision of child processes: one that ends unexpectedly is started again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from app.cli.devserver.embedded import end
from app.cli.errors import CommandFailed

_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
_STEADY_AFTER_SECONDS = 60.0


def say(text: str) -> None:
    """Print a message for people on stderr. stdout is only for the result."""
    print(text, file=sys.stderr, flush=True)


class Child:
    """A running process, and the function that starts it again."""

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        start: Callable[[], subprocess.Popen[bytes]],
        gentle: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.process = process
        self._start = start
        self._gentle = gentle
        self._started_at = time.monotonic()
        self._restart_at: float | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def how_it_ended(self) -> str | None:
        """Return its exit code or signal in words; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def tend(self) -> None:
        """Start the process again if it has ended, after a pause that doubles with each failure.

        Call it often.
        """
        now = time.monotonic()
        if self._restart_at is None:
            how = self.how_it_ended()
            if how is None:
                return
            if now - self._started_at > _STEADY_AFTER_SECONDS:
                self._pause_seconds = _FIRST_PAUSE_SECONDS
            self._plan_start(f"ended by itself ({how})", now)
        elif now >= self._restart_at:
            self._restart_at = None
            self._started_at = now
            try:
                self.process = self._start()
            except CommandFailed as err:
                self._plan_start(f"could not be started: {err}", now)

    def start_again(self) -> None:
        """Start the process again after it was ended on purpose. This also ends a pause after a failure."""
        self._restart_at = None
        self._started_at = time.monotonic()
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self.process = self._start()

    def ask_to_end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(self._gentle)

    def wait_until(self, deadline: float) -> None:
        """Wait for its end until `deadline` (time.monotonic), then kill it."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            end(self.process, signal.SIGKILL, 10)

    def _plan_start(self, what_happened: str, now: float) -> None:
        say(f"{self.name} {what_happened}; starting it again in {self._pause_seconds:g} s.")
        self._restart_at = now + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, _MAX_PAUSE_SECONDS)


def end_together(children: Sequence[Child], within_seconds: float) -> None:
    """End all children at the same time. Kill those that run after `within_seconds`."""
    deadline = time.monotonic() + within_seconds
    for child in children:
        child.ask_to_end()
    for child in children:
        child.wait_until(deadline)


def restart_together(children: Sequence[Child], within_seconds: float) -> None:
    """End all children as `end_together` does, and start them again."""
    end_together(children, within_seconds)
    for child in children:
        child.start_again()
