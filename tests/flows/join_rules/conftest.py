"""A fake runner and a launcher for it."""

from tests.flows.bots.conftest import launcher, runner, runner_settings

__all__ = ["launcher", "runner", "runner_settings"]
