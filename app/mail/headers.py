"""Header values with texts of users: display names and subjects.

The standard library is not used for them. When it folds a line inside a quoted display name it drops the quotes, so
that a comma in a name begins another recipient (https://github.com/python/cpython/issues/80222, in most patch releases
of 3.11 to 3.13). Messages reads group syntax even inside quotes (docs/reference/messages.md, "Recipients"). So nothing is
quoted here: texts that are not plain words become encoded words (RFC 2047), in which no parser looks for addresses.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator

# Letters, digits, "-" and single spaces: the part of atext to which no parser gives a meaning.
_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9-]+(?: [A-Za-z0-9-]+)*")
_PLAIN_TEXT = re.compile(r"[!-~]+(?: [!-~]+)*")
_LONGEST_PLAIN = 76
_LONGEST_WORD = 75  # RFC 2047 2, with its marks
_MARKS = len("=?utf-8?q?" + "?=")
# RFC 2047 5 (3): in a phrase nothing else may stand for itself.
_Q_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")


def phrase(header: str, text: str) -> str:
    """A display name for a header. `text` must be on one line. Long values are folded with CRLF."""
    if not text or (_PLAIN_PHRASE.fullmatch(text) and len(header) + 2 + len(text) <= _LONGEST_PLAIN):
        return text
    return _encoded(text, first_indent=len(header) + 2)


def unstructured(header: str, text: str) -> str:
    """A value such as a subject. `text` must be on one line. Long values are folded with CRLF."""
    is_plain = _PLAIN_TEXT.fullmatch(text) is not None and "=?" not in text
    if not text or (is_plain and len(header) + 2 + len(text) <= _LONGEST_PLAIN):
        return text
    return _encoded(text, first_indent=len(header) + 2)


def _encoded(text: str, *, first_indent: int) -> str:
    """Encoded words of whole characters, each on a line of its own, in the shorter of the two encodings."""
    data = text.encode("utf-8", "replace")  # lone surrogates become "?"
    as_q = sum(len(_q(bytes([byte]))) for byte in data)
    mark, write = ("q", _q) if as_q <= len(data) * 4 / 3 else ("b", _b)
    words = _chunks(data.decode(), write, _LONGEST_PLAIN - first_indent)
    return "\r\n ".join(f"=?utf-8?{mark}?{word}?=" for word in words)


def _chunks(text: str, write: Callable[[bytes], str], room_on_first_line: int) -> Iterator[str]:
    room = min(_LONGEST_WORD, room_on_first_line) - _MARKS
    pending = b""
    for char in text:
        data = char.encode()
        if pending and len(write(pending + data)) > room:
            yield write(pending)
            pending, room = b"", _LONGEST_WORD - _MARKS
        pending += data
    yield write(pending)


def _q(data: bytes) -> str:
    return "".join("_" if byte == 32 else chr(byte) if byte in _Q_SAFE else f"={byte:02X}" for byte in data)


def _b(data: bytes) -> str:
    return b64encode(data).decode()
