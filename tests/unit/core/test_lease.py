import asyncio

import pytest

from app.core.lease import Lease, LeaseLost, extending


def test_a_lease_has_its_own_token_and_a_time_to_begin():
    first, second = Lease.new(begin_within_seconds=60), Lease.new(begin_within_seconds=-1)
    assert first.token != second.token
    assert not first.is_too_late
    assert second.is_too_late


async def test_a_lease_is_extended_while_the_block_runs_whatever_the_database_does():
    calls = 0

    async def extend():
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError

    async with extending(extend, every_seconds=0.01):
        async with asyncio.timeout(5):
            while calls < 3:
                await asyncio.sleep(0.005)
    ended = calls
    await asyncio.sleep(0.05)
    assert calls == ended


async def test_a_lost_lease_is_not_extended_again():
    calls = 0

    async def extend():
        nonlocal calls
        calls += 1
        raise LeaseLost

    async with extending(extend, every_seconds=0.01):
        await asyncio.sleep(0.08)
    assert calls == 1


async def test_an_error_of_the_block_comes_through():
    async def extend():
        pass

    with pytest.raises(ZeroDivisionError):
        async with extending(extend, every_seconds=60):
            raise ZeroDivisionError
