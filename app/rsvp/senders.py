"""Check that a mail was sent by the address in its From header.

The check is DKIM (RFC 6376), aligned as for DMARC (RFC 7489 section 3.1.1).

Mails and published keys are hostile input. dkimpy takes quadratic time for some, so their sizes are limited here.
"""

import asyncio
import re
from contextlib import suppress
from typing import Any

import dkim
import structlog
from dkim.util import InvalidTagValueList, parse_tag_value
from dns.asyncresolver import Resolver
from dns.exception import DNSException, Timeout
from dns.resolver import NXDOMAIN, LRUCache, NoAnswer, NoNameservers

from app.rsvp.errors import LookupFailed

log = structlog.get_logger()

_LONGEST_HEAD = 100_000
_MOST_BLANKS = 1_000_000  # blanks and line breaks of a body: about a second; 25 MiB of base64 have 700,000
_LONGEST_SIGNATURE = 4_000
_LONGEST_KEY = 2_000  # an RSA key of 4096 bits has 740 characters
_MOST_SIGNATURES = 3
_LOOKUP_SECONDS = 5.0
_SAFE_ALGORITHMS = frozenset({b"rsa-sha256", b"ed25519-sha256"})  # RFC 8301 3.1
_HOST = re.compile(rb"[a-z0-9_-]+(\.[a-z0-9_-]+)+", re.IGNORECASE)


class SenderKeys:
    """Public keys of mail domains, read from the DNS."""

    def __init__(self) -> None:
        self._resolver: Resolver | None = None

    async def find(self, name: str) -> bytes | None:
        """Return the TXT record; None if there is none. Raises LookupFailed."""
        try:
            if self._resolver is None:
                self._resolver = Resolver()
                self._resolver.cache = LRUCache(1_000)
            records = await self._resolver.resolve(name, "TXT", lifetime=_LOOKUP_SECONDS)
        except (NXDOMAIN, NoAnswer):
            return None
        except (Timeout, NoNameservers, OSError) as err:
            raise LookupFailed(type(err).__name__) from None
        except DNSException:  # such as a name that is not valid
            return None
        return b"".join(records[0].strings)


async def is_signed_by_sender(mail: bytes, address: str, keys: SenderKeys) -> bool:
    """Whether the domain of `address`, or a parent domain, has signed the From header and the whole body.

    `address` is the only one in From. Raises LookupFailed.
    """
    head, body = _split(mail)
    if len(head) > _LONGEST_HEAD or sum(map(body.count, (b" ", b"\t", b"\r", b"\n"))) > _MOST_BLANKS:
        return False
    domain = address.rpartition("@")[2].lower().encode()
    for index, signature in _signatures(head, domain):
        name = (signature[b"s"] + b"._domainkey." + signature[b"d"]).decode("ascii").lower() + "."
        key = await keys.find(name)
        if key is None or len(key) > _LONGEST_KEY:
            continue
        # In a thread: hashing many megabytes would hold up other requests.
        if await asyncio.to_thread(_verify, head, body, index, signature, key):
            return True
    return False


def _split(mail: bytes) -> tuple[bytes, bytes]:
    """Return the header fields, and the body behind the first empty line."""
    found = re.search(rb"\r?\n\r?\n", mail)
    return (mail, b"") if found is None else (mail[: found.start()], mail[found.end() :])


def _signatures(head: bytes, domain: bytes) -> list[tuple[int, dict[bytes, bytes]]]:
    """Return (index among all signatures, tags) of those that could speak for the domain."""
    with suppress(dkim.DKIMException, ValueError, IndexError):
        fields = dkim.DKIM(head + b"\r\n\r\n").headers
        # Software that reads a lone CR as the end of a line must not find another From than the signed one.
        if b"\r" in head.replace(b"\r\n", b"") or [name.lower() for name, _ in fields].count(b"from") != 1:
            return []
        values = [value for name, value in fields if name.lower() == b"dkim-signature"]
        found = [(index, _tags(value)) for index, value in enumerate(values)]
        return [(index, tags) for index, tags in found if tags and _speaks_for(tags, domain)][
            :_MOST_SIGNATURES
        ]
    return []


def _tags(value: bytes) -> dict[bytes, bytes]:
    if len(value) > _LONGEST_SIGNATURE:
        return {}
    try:
        tags: dict[bytes, bytes] = parse_tag_value(value)
    except InvalidTagValueList:
        return {}
    # "l" leaves the end of the body unsigned, so a calendar could be added there.
    is_whole = {b"a", b"d", b"s", b"h"} <= tags.keys() and b"l" not in tags
    is_safe = is_whole and tags[b"a"] in _SAFE_ALGORITHMS
    has_names = is_safe and all(
        _HOST.fullmatch(tags[name] + (b".x" if name == b"s" else b"")) for name in (b"d", b"s")
    )
    return tags if has_names else {}


def _speaks_for(tags: dict[bytes, bytes], domain: bytes) -> bool:
    """Return whether the signing domain is that of the From, or one above it, whose owner controls it.

    This needs no public suffix list.
    """
    signing = tags[b"d"].lower()
    return domain == signing or domain.endswith(b"." + signing)


def _verify(head: bytes, body: bytes, index: int, tags: dict[bytes, bytes], key: bytes) -> bool:
    if tags.get(b"c", b"simple/simple").partition(b"/")[2] == b"relaxed":
        # The same as dkimpy does, in linear time.
        body = re.sub(rb"[\t ]+", b" ", body)

    def find_key(_name: bytes, **_options: Any) -> bytes:
        return key

    try:
        return bool(dkim.DKIM(head + b"\r\n\r\n" + body, minkey=1024).verify(index, dnsfunc=find_key))
    except Exception as err:  # noqa: BLE001 - the library raises any exception for malformed input
        log.info("dkim_unreadable", error=type(err).__name__)
        return False
