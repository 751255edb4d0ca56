"""A Redis that stops responding costs no connection for good."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import RedisError

from app.core.wakeups import WakeUps, connect_redis


class Mute:
    """Responds to every command with OK, until `is_mute`."""

    def __init__(self) -> None:
        self.url = ""
        self.is_mute = False
        self.heard = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            if self.is_mute:
                self.heard.set()
                continue
            commands = sum(line.startswith(b"*") for line in chunk.split(b"\r\n"))
            writer.write(b"+OK\r\n" * commands)
        writer.close()


@pytest.fixture
async def mute() -> AsyncIterator[Mute]:
    fake = Mute()
    server = await asyncio.start_server(fake, "127.0.0.1", 0)
    fake.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield fake
    server.close()


async def test_cancelled_while_it_says_goodbye_it_gives_the_connection_back(mute: Mute) -> None:
    redis = connect_redis(mute.url)

    async def look() -> None:
        async with redis.pipeline() as pipe:
            await pipe.watch("key")
            mute.is_mute = True

    task = asyncio.create_task(look())
    await mute.heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not redis.connection_pool._in_use_connections
    await redis.aclose(close_connection_pool=True)


async def test_cancelled_before_that_it_asks_for_nothing_more(mute: Mute) -> None:
    redis = connect_redis(mute.url)

    async def look() -> None:
        async with redis.pipeline() as pipe:
            await pipe.watch("key")
            mute.is_mute = True
            await pipe.get("key")

    task = asyncio.create_task(look())
    await mute.heard.wait()
    mute.heard.clear()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not mute.heard.is_set()
    assert not redis.connection_pool._in_use_connections
    await redis.aclose(close_connection_pool=True)


async def test_a_redis_that_says_nothing_takes_no_connection_for_good(mute: Mute) -> None:
    redis = connect_redis(mute.url)
    redis.connection_pool.connection_kwargs["socket_timeout"] = 0.1

    async def look() -> None:
        async with redis.pipeline() as pipe:
            await pipe.watch("key")
            mute.is_mute = True

    with pytest.raises(RedisError):
        await look()
    assert not redis.connection_pool._in_use_connections
    await redis.aclose(close_connection_pool=True)


async def test_wake_ups_without_a_response_leave_no_connection_behind(mute: Mute) -> None:
    redis = connect_redis(mute.url)
    await redis.ping()
    mute.is_mute = True
    wakeups = WakeUps(redis)
    await asyncio.gather(*(wakeups.wake("mails", after=n + 1) for n in range(5)))
    assert not redis.connection_pool._in_use_connections
    await wakeups.aclose()
