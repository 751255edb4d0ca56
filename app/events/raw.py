"""The provider's own object as it is stored in `raw`: bounded, and valid for PostgreSQL."""

from typing import Any

import orjson

from app.events.limits import RAW_TEXT, RAW_TOTAL_BYTES, cut

_MAX_DEPTH = 20


def _clean(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return cut(value, RAW_TEXT)
    if depth == 0 and isinstance(value, dict | list):
        return None
    if isinstance(value, dict):
        return {cut(str(key), RAW_TEXT): _clean(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, depth - 1) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63:
        return str(value)
    return value


def _needs_cleaning(text: bytes) -> bool:
    # JSON has NUL as \u0000. Lone surrogates make orjson.dumps raise.
    return len(text) > RAW_TEXT or b"\\u0000" in text


def dump_raw(value: dict[str, Any]) -> str:
    """Return compact JSON of `value`, with texts cut at 8,000 characters and without NUL characters.

    An object still over 256 KiB keeps only its scalar members, so that a single event cannot fill the disk.
    """
    try:
        text = orjson.dumps(value)
    except TypeError:  # lone surrogates, integers over 64 bits
        text = orjson.dumps(_clean(value, _MAX_DEPTH))
    if _needs_cleaning(text):
        text = orjson.dumps(_clean(value, _MAX_DEPTH))
    if len(text) > RAW_TOTAL_BYTES:
        scalars = {k: v for k, v in value.items() if not isinstance(v, dict | list)}
        text = orjson.dumps(_clean({**scalars, "_truncated": True}, 1))
    return text.decode()
