"""Runs any ASGI app as a real HTTP server in the test's own event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

_PATIENCE_SECONDS = 0.2  # how long requests under way may go on when the test is over


@contextlib.asynccontextmanager
async def serve(app: Any, **options: Any) -> AsyncIterator[str]:
    """Yields the base URL (`http://127.0.0.1:PORT`, no slash at the end) while `app` is served there.

    `options` go to uvicorn.Config; with `ssl_certfile` and `ssl_keyfile` the URL is https.
    uvicorn's own run loop is left out: it takes over signals, and sleeps 0.2 s on its way out.
    """
    # asyncio turns Nagle's delay (40 ms a response) off only for sockets that name their protocol.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    defaults = {
        "log_config": None,
        "access_log": False,
        "http": "httptools",
        "ws": "none",
        "proxy_headers": False,
    }
    config = uvicorn.Config(app, **{**defaults, **options})
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    await server.on_tick(0)  # sets the Date header
    try:
        yield f"{'https' if config.is_ssl else 'http'}://127.0.0.1:{port}"
    finally:
        await _stop(server)


async def _stop(server: uvicorn.Server) -> None:
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    tasks = set(server.server_state.tasks)
    late = (await asyncio.wait(tasks, timeout=_PATIENCE_SECONDS))[1] if tasks else set()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    await server.lifespan.shutdown()
    while server.server_state.connections:
        await asyncio.sleep(0)  # sockets close in the loop's next rounds
