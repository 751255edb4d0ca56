"""Children that are kept running: one that ends by itself is started again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from app.cli.devserver.embedded import end
from app.cli.errors import CommandFailed

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_AFTER_SECONDS = 60.0


def say(text: str) -> None:
    """For people, on stderr: stdout is for the one answer."""
    print(text, file=sys.stderr, flush=True)


class Child:
    """A running process, and how to start another like it."""

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
        self._start_again_at: float | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def how_it_ended(self) -> str | None:
        """None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def tend(self) -> None:
        """Call this often. Starts an ended process again, after a pause that doubles while it keeps failing."""
        now = time.monotonic()
        if self._start_again_at is None:
            how = self.how_it_ended()
            if how is None:
                return
            if now - self._started_at > _STEADY_AFTER_SECONDS:
                self._pause_seconds = _FIRST_PAUSE_SECONDS
            self._plan_start(f"ended by itself ({how})", now)
        elif now >= self._start_again_at:
            self._start_again_at = None
            self._started_at = now
            try:
                self.process = self._start()
            except CommandFailed as err:
                self._plan_start(f"could not be started: {err}", now)

    def start_again(self) -> None:
        """Start another process in place of one that has ended on purpose; a pause between failures ends too."""
        self._start_again_at = None
        self._started_at = time.monotonic()
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self.process = self._start()

    def ask_to_end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(self._gentle)

    def wait_until(self, deadline: float) -> None:
        """Waits for its end until `deadline` (time.monotonic), then ends it with force."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            end(self.process, signal.SIGKILL, 10)

    def _plan_start(self, what_happened: str, now: float) -> None:
        say(f"{self.name} {what_happened}; starting it again in {self._pause_seconds:g} s.")
        self._start_again_at = now + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)


def end_together(children: Sequence[Child], within_seconds: float) -> None:
    """Ends all of them side by side, with force after `within_seconds`."""
    deadline = time.monotonic() + within_seconds
    for child in children:
        child.ask_to_end()
    for child in children:
        child.wait_until(deadline)


def restart_together(children: Sequence[Child], within_seconds: float) -> None:
    """End all of them side by side, with force after `within_seconds`, and start them again."""
    end_together(children, within_seconds)
    for child in children:
        child.start_again()
