"""The parts of a link, parsed strictly, and the possible results for one.

Own code instead of `urllib.parse.urlsplit`: that one raises on some input, silently drops tabs and newlines,
and accepts user names, ports and look-alike hosts, each of which decides here whether a link is trusted.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

MAX_URL_LENGTH = (
    4096  # characters, before and after unwrapping (docs/reference/meeting-links.md, "Trusted hosts")
)
_MAX_HOST_LENGTH = 253  # RFC 1035 2.3.4, without the final dot

WEB_SCHEMES = frozenset({"http", "https"})
# The Zoom application's own links. Only the Zoom recogniser takes them, and it returns a web link.
ZOOM_APP_SCHEMES = frozenset({"zoommtg", "zoomus"})

_AUTHORITY_END = re.compile(r"[/?#\\]")
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;=-._~"  # RFC 3986 2: reserved, unreserved, and what is encoded already


@dataclass(frozen=True, slots=True)
class MeetingLink:
    """A link that joins a meeting.

    `url` is the link as written, without its wrapping; it keeps what a guest needs (`pwd`, `p`, `tk`) and never
    has `zak`, which would make the guest the host. Two links of one (`platform`, `meeting_id`) are one meeting.
    `is_supported` is False for platforms that are recognised only.
    """

    url: str
    platform: str
    meeting_id: str
    is_supported: bool


@dataclass(frozen=True, slots=True)
class Inner:
    """The link inside a wrapper or a launcher page, to be looked at in its turn."""

    url: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not a meeting link, as a sentence without any secret of the link.

    `is_final` is False where one more percent-decoding could still show a meeting link.
    """

    reason: str
    is_final: bool = False


Outcome = MeetingLink | Inner | Refusal


@dataclass(frozen=True, slots=True)
class Url:
    """A link in parts. `host` is lower case ASCII without the final dot; the others are as written."""

    scheme: str
    host: str
    path: str
    query: str
    fragment: str

    def segments(self) -> list[str]:
        """The parts of the path, still percent-encoded, without empty ones."""
        return [segment for segment in self.path.split("/") if segment]

    def param(self, name: str) -> str:
        """The first value of a query parameter, percent-decoded once; "" if missing. `name` is lower case."""
        for key, pair in _pairs(self.query):
            if key == name:
                return unquote(pair.partition("=")[2])
        return ""

    def raw_param(self, name: str) -> str:
        """Like `param`, as written."""
        for key, pair in _pairs(self.query):
            if key == name:
                return pair.partition("=")[2]
        return ""

    def query_without(self, names: Iterable[str]) -> str:
        """The query as written, with its `?`, without some parameters; "" if nothing is left."""
        dropped = frozenset(names)
        kept = "&".join(pair for key, pair in _pairs(self.query) if key not in dropped)
        return f"?{kept}" if kept else ""


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    """(lower-case decoded name, `name=value` as written) of each parameter."""
    for pair in query.split("&"):
        if pair:
            yield unquote(pair.partition("=")[0]).lower(), pair


def split_url(text: str) -> Url | Refusal:
    """Take a link apart. Never raises; refuses what could lead elsewhere than it seems to."""
    if len(text) > MAX_URL_LENGTH:
        return Refusal(f"It is longer than {MAX_URL_LENGTH} characters.", is_final=True)
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or (scheme not in WEB_SCHEMES and scheme not in ZOOM_APP_SCHEMES):
        return Refusal("It is not an http or https link.", is_final="%" not in scheme)
    end_match = _AUTHORITY_END.search(rest)
    end = end_match.start() if end_match else len(rest)
    authority = rest[:end]
    if "@" in authority or rest.startswith("\\", end):
        return Refusal("Its host is hidden behind a user name or a backslash.", is_final=True)
    if "%" in authority:
        return Refusal("Its host is percent-encoded.")
    host, _, port = authority.partition(":")
    if port not in {"", "443"}:
        return Refusal("It names a port other than 443.", is_final=True)
    host = ascii_host(host)
    if not host:
        return Refusal("Its host is not a valid name.", is_final=True)
    before_fragment, _, fragment = rest[end:].partition("#")
    path, _, query = before_fragment.partition("?")
    return Url(scheme, host, path, query, fragment)


def ascii_host(host: str) -> str:
    """A host name in lower case and ASCII (RFC 3492 for other scripts); "" if it is none.

    Other scripts are encoded as they are, without the mapping of IDNA: a letter that only looks like a Latin one,
    or that IDNA would fold into one, never turns into the name of a known service.
    """
    host = host.removesuffix(".")
    if len(host) > _MAX_HOST_LENGTH:
        return ""
    if not host.isascii():
        try:
            host = ".".join(
                label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")
                for label in host.split(".")
            )
        except UnicodeError:
            return ""
    host = host.lower()
    return host if _HOST.fullmatch(host) else ""


def quote_url(url: str) -> str:
    """Percent-encode the characters that are not allowed in a URL. What is encoded already is not changed."""
    return quote(url, safe=_URL_CHARACTERS, errors="replace")


def build_link(
    url: str, platform: str, meeting_id: str, *, is_supported: bool = True
) -> MeetingLink | Refusal:
    """Return the link with its `url` percent-encoded, or a Refusal if that is too long."""
    text = quote_url(url)
    if len(text) > MAX_URL_LENGTH:
        return Refusal(f"It is longer than {MAX_URL_LENGTH} characters once encoded.", is_final=True)
    return MeetingLink(text, platform, meeting_id, is_supported)
