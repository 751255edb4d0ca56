"""A proxy that demands TLS and passes on what is inside, as those of managed PostgreSQL services do."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_REFUSAL = b'SFATAL\0C28000\0Mno pg_hba.conf entry for host "127.0.0.1", no encryption\0\0'


@contextlib.contextmanager
def serving_tls(socket_path: str, certificate: ssl.SSLContext) -> Iterator[int]:
    """The port on 127.0.0.1; it runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    started, ended = threading.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, ssl.SSLError):
            if await reader.readexactly(8) != _SSL_REQUEST:
                writer.write(b"E" + (len(_REFUSAL) + 4).to_bytes(4, "big") + _REFUSAL)
                writer.close()
                return
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(certificate)
            inner_reader, inner_writer = await asyncio.open_unix_connection(socket_path)
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    async def run() -> None:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            ports.append(server.sockets[0].getsockname()[1])
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    started.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
