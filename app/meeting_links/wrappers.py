"""Links that mail filters and web sites wrap around other links, and how to read the one inside.

Everything is read from the text of the wrapper; nothing is ever fetched (docs/reference/meeting-links.md,
"Wrapped links").
"""

import base64
import binascii
import html
import re
from collections.abc import Callable
from urllib.parse import unquote

from app.meeting_links.urls import Inner, Refusal, Url

_SAFE_LINKS_DOMAINS = (".safelinks.protection.outlook.com", ".safelinks.protection.office365.us")
_SAFE_LINKS_PATHS = frozenset({"", "/", "/geturlreputation"})
_GOOGLE = re.compile(r"www\.google\.(?:com|[a-z]{2}|com?\.[a-z]{2})")
_DEFENSE_V2 = str.maketrans("-_", "%/")
# URL Defense v3 puts `*` for one replaced character and `**X` for a run of them.
_DEFENSE_V3_TOKEN = re.compile(r"\*\*([A-Za-z0-9_-])|\*")
_DEFENSE_V3_RUNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_ONE_SLASH = re.compile(r"(https?:/)(?=[^/])", re.IGNORECASE)


def unwrap(url: Url) -> Inner | Refusal | None:
    """The link inside a wrapper; a refusal if it cannot be read; None if the host is no wrapper's."""
    reader = _READERS.get(url.host)
    if reader is None:
        if url.host.endswith(_SAFE_LINKS_DOMAINS):
            reader = _safe_links
        elif url.host.startswith("www.google.") and _GOOGLE.fullmatch(url.host):
            reader = _google
        elif url.host.endswith(".mimecast.com"):
            return Refusal("A Mimecast link does not show where it leads.", is_final=True)
        else:
            return None
    inner = reader(url)
    if not inner:
        return Refusal(f"There is no link to unwrap in this address of {url.host}.")
    return Inner(inner)


def _safe_links(url: Url) -> str:
    path = url.path.lower()
    return url.param("url") if path in _SAFE_LINKS_PATHS or path.startswith("/ap/") else ""


def _teams_safe_links(url: Url) -> str:
    return url.param("url") if url.path.lower().endswith("/atp-safelinks.html") else ""


def _google(url: Url) -> str:
    return url.param("q") or url.param("url") if url.path == "/url" else ""


def _url_defense(url: Url) -> str:
    if url.path == "/v1/url":
        return html.unescape(url.param("u"))
    if url.path == "/v2/url":
        return html.unescape(unquote(url.raw_param("u").translate(_DEFENSE_V2)))
    if url.path.startswith("/v3/__"):
        # The link inside stands here unencoded, with its own `?` and `#`.
        rest = url.path.removeprefix("/v3/__")
        rest += f"?{url.query}" if url.query else ""
        rest += f"#{url.fragment}" if url.fragment else ""
        return _url_defense_v3(rest)
    return ""


def _url_defense_v3(text: str) -> str:
    """Read `<link>__;<base64url of what was replaced>!...`; "" if it does not fit together."""
    link, separator, tail = text.rpartition("__;")
    if not separator:
        return ""
    encoded = tail.partition("!")[0]
    try:
        replaced = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, UnicodeError, ValueError):
        return ""
    tokens = list(_DEFENSE_V3_TOKEN.finditer(link))
    counts = [_DEFENSE_V3_RUNS.index(token[1]) + 2 if token[1] else 1 for token in tokens]
    # Proofpoint counts UTF-8 bytes, its published script counts characters. The total shows which it was.
    units = [character.encode() for character in replaced]
    if sum(counts) != len(units):
        units = [bytes((byte,)) for byte in replaced.encode()]
    if sum(counts) > len(units):
        return ""
    pieces: list[bytes] = []
    end = used = 0
    for token, count in zip(tokens, counts, strict=True):
        pieces.append(link[end : token.start()].encode(errors="replace"))
        pieces.extend(units[used : used + count])
        end, used = token.end(), used + count
    pieces.append(link[end:].encode(errors="replace"))
    return _ONE_SLASH.sub(r"\1/", b"".join(pieces).decode(errors="replace"), count=1)


def _facebook(url: Url) -> str:
    return url.param("u") if url.path == "/l.php" else ""


def _slack(url: Url) -> str:
    return url.param("url") if url.path == "/link" else ""


def _barracuda(url: Url) -> str:
    return url.param("a") if url.path == "/url" else ""


_READERS: dict[str, Callable[[Url], str]] = {
    "statics.teams.cdn.office.net": _teams_safe_links,
    "urldefense.proofpoint.com": _url_defense,
    "urldefense.com": _url_defense,
    "urldefense.us": _url_defense,
    "l.facebook.com": _facebook,
    "l.messenger.com": _facebook,
    "slack-redir.net": _slack,
    "linkprotect.cudasvc.com": _barracuda,
}
