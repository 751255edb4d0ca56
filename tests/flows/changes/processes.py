"""The API as a process of its own, which can be killed."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import Any

from app.core.http import httpx
from tests.conftest import FERNET_KEY


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ApiProcess:
    """`calbridge api` as a process that can be killed and started again on the same port."""

    def __init__(self, settings: Any, workers: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            "-m", "app.cli.main", "api", "--port", str(self.port), "--workers", str(workers),
        ]  # fmt: skip
        self._env = {
            "DATABASE_URL": settings.required_database_url(),
            "REDIS_URL": settings.required_redis_url(),
            "CREDENTIALS_ENCRYPTION_KEYS": FERNET_KEY,
            "LOG_LEVEL": "WARNING",
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *self._command, env={**os.environ, **self._env}, start_new_session=True
        )
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    async with httpx.AsyncClient() as http:
                        if (await http.get(f"{self.url}/healthz")).status_code == 200:
                            return
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
