"""Checking and rotating the encryption of stored secrets (CREDENTIALS_ENCRYPTION_KEYS)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from app.core.crypto import SealBroken, SecretBox
from app.core.db import Sessions, reading, transaction
from app.keys import repository
from app.keys.repository import Key, SealedColumn, SealedValue

_BATCH = 200
_LOCKED_AGAIN_AFTER_SECONDS = 0.2
_LOCKED_TRIES = 50


@dataclass
class Tally:
    """The number of rows of one column, by what was found.

    - `rows`: the rows that were read.
    - `has_first_key`: rows that were already encrypted with the first key.
    - `resealed`: rows that were encrypted again.
    - `broken`: rows that no key decrypts.
    - `locked`: rows that other transactions kept locked.
    - `is_sample`: there may be more rows, which were not read.
    """

    column: str
    rows: int = 0
    has_first_key: int = 0
    resealed: int = 0
    broken: int = 0
    locked: int = 0
    is_sample: bool = False


async def inspect(sessions: Sessions, box: SecretBox, *, most_rows: int) -> AsyncIterator[Tally]:
    """Decrypt up to `most_rows` secrets of each column and yield a tally of each. Changes nothing."""
    for column in repository.sealed_columns():
        async with reading(sessions) as session:
            values = await repository.load_batch(session, column, after=None, limit=most_rows)
        tally = Tally(str(column), rows=len(values), is_sample=len(values) == most_rows)
        await asyncio.to_thread(_stale, box, values, tally)
        yield tally


async def rotate(sessions: Sessions, box: SecretBox) -> AsyncIterator[Tally]:
    """Encrypt every secret with the first key, in short transactions. Yields the tally of each column.

    It may be interrupted and started again: rows that have the first key are left unchanged. Other processes may run in
    the meantime: a row is changed only under its lock, and rows that are locked by others are tried again.
    """
    for column in repository.sealed_columns():
        tally = Tally(str(column))
        after: Key | None = None
        while True:
            async with reading(sessions) as session:
                values = await repository.load_batch(session, column, after=after, limit=_BATCH)
            if not values:
                break
            after = values[-1].key
            tally.rows += len(values)
            await _reseal(sessions, box, column, _stale(box, values, tally), tally)
        yield tally


def _stale(box: SecretBox, values: Sequence[SealedValue], tally: Tally) -> list[Key]:
    """Return the rows that another key than the first decrypts, and count the others."""
    keys = []
    for value in values:
        try:
            if box.has_first_key(value.context, value.sealed):
                tally.has_first_key += 1
            else:
                box.open(value.context, value.sealed)
                keys.append(value.key)
        except SealBroken:
            tally.broken += 1
    return keys


async def _reseal(
    sessions: Sessions, box: SecretBox, column: SealedColumn, keys: Sequence[Key], tally: Tally
) -> None:
    left = list(keys)
    for number in range(_LOCKED_TRIES):
        if not left:
            return
        if number:
            await asyncio.sleep(_LOCKED_AGAIN_AFTER_SECONDS)
            async with reading(sessions) as session:
                # The transaction that had them locked may have encrypted them again or deleted them.
                values = await repository.load_values(session, column, left)
            tally.rows -= len(left) - len(values)
            left = _stale(box, values, tally)
        async with transaction(sessions) as session:
            locked = await repository.lock_values(session, column, left)
            stale = set(_stale(box, locked, tally))
            sealed = {
                value.key: box.reseal(value.context, value.sealed) for value in locked if value.key in stale
            }
            await repository.replace_values(session, column, sealed)
        tally.resealed += len(sealed)
        done = {value.key for value in locked}
        left = [key for key in left if key not in done]
    tally.locked += len(left)
