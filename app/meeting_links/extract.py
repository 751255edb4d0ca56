"""Find the link that joins an event's meeting, in any of its fields.

Pure functions over text (docs/reference/meeting-links.md): nothing is fetched, nothing is raised for any text, and the time
taken grows with the length of the text only. What they return holds passwords; use `redact` before logging.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.entities import html5
from urllib.parse import unquote

from app.meeting_links.platforms import DEFAULT_HOSTS, MeetingHosts, believe, platform_of_host, recognise
from app.meeting_links.urls import Inner, MeetingLink, Outcome, Refusal, Url, split_url
from app.meeting_links.wrappers import unwrap

__all__ = [
    "DEFAULT_HOSTS",
    "Candidate",
    "MeetingHosts",
    "MeetingLink",
    "find_all_links",
    "find_meeting_link",
    "find_platform",
    "parse_meeting_url",
    "redact",
]

MAX_TEXT_LENGTH = 100_000  # characters; what follows is not looked at
MAX_WRAPPERS = 5
MAX_DECODINGS = 3

# What ends a link in a text: white space, quotes and brackets of HTML, Markdown and chat, punctuation of other
# scripts. A closing round bracket is cut off at the end only.
_STOP = r"\s<>\"'`|\\^\[\]“”„‘’«»‹›…、。，；：！？（）【】「」『』《》"
# `://`, also percent-encoded up to three times.
_SEPARATOR = r"(?::|%(?:25){0,2}3[aA])(?:/|%(?:25){0,2}2[fF]){2}"
# Patterns that start with fixed letters are searched for several times faster: the common spelling has its own.
_URL = re.compile(rf"https?{_SEPARATOR}[^{_STOP}]*")
_ANY_URL = re.compile(rf"(?:https?|zoommtg|zoomus){_SEPARATOR}[^{_STOP}]*", re.IGNORECASE)
_RARE_SCHEMES = ("HTTP", "Http", "zoommtg:", "zoomus:")
_STOP_CHARACTER = re.compile(f"[{_STOP}]")
_REST_OF_URL = re.compile(rf"[^{_STOP}]*")
_HREF_VALUE = r"""\s{0,9}=\s{0,9}(?:"([^"<>]*)|'([^'<>]*))"""
_HREF = re.compile(f"href{_HREF_VALUE}")
_ANY_HREF = re.compile(f"href{_HREF_VALUE}", re.IGNORECASE)
_WORD = re.compile(rf"[^,;(){_STOP}]+")
_SEPARATOR_OF_LISTS = re.compile("[,;]")
_TRAILING = ").,;]}>!?:*"

# Only complete entities: in a plain text `&region=` is a parameter, although HTML would read `&reg`.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|([A-Za-z][A-Za-z0-9]{1,31}));")
# Left over from iCalendar and Markdown escaping.
_ESCAPED = re.compile(r"\\(?=[?=&#;,_])")
_WORD_BREAK = re.compile(r"<wbr ?/?>", re.IGNORECASE)
_STRAY_EQUALS = re.compile(r"=(?![0-9A-F]{2})")

_INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_CLEANED = {ord(character): None for character in _INVISIBLE} | {ord(character): "-" for character in _DASHES}

# How structured fields name a service without a link: Graph's `onlineMeetingProvider`, Google's `conferenceSolution`,
# Outlook's "Microsoft Teams Meeting" as the location. "visio" last: it is also French for a video call of any kind.
_NAMES = (
    ("teams", "teams"),
    ("zoom", "zoom"),
    ("hangoutsmeet", "google_meet"),
    ("google meet", "google_meet"),
    ("webex", "webex"),
    ("gotomeeting", "goto"),
    ("goto meeting", "goto"),
    ("whereby", "whereby"),
    ("jitsi", "jitsi"),
    ("visio", "visio"),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One link seen in a text: `link`, or else `reason`, a sentence why it is not a meeting's.

    `unwrapped_url` is the link inside, where `url` (as seen) was a wrapper.
    """

    url: str
    unwrapped_url: str | None
    link: MeetingLink | None
    reason: str | None


def find_meeting_link(
    *,
    join_urls: Sequence[str] = (),
    conference: Sequence[str] = (),
    location: str | None = None,
    description: str | None = None,
    title: str | None = None,
    hosts: MeetingHosts = DEFAULT_HOSTS,
) -> MeetingLink | None:
    """The link to join an event's meeting, or None.

    `join_urls` are the provider's own fields for a join URL, best first: such a link counts by its host alone,
    whatever its code looks like. `conference` are further structured fields (links, names of the service). The first
    supported link of join_urls, conference, location, description, title is taken; before it, the first one of
    `hosts.preferred`; a link that is recognised only, if there is no other. Within a text that has several, a link
    of the service which the structured fields or the location name goes first.
    """
    named: str | None = None
    supported: MeetingLink | None = None
    recognised: MeetingLink | None = None
    for text, is_structured, is_own in (
        *((entry, True, True) for entry in join_urls),
        *((entry, True, False) for entry in conference),
        (location, True, False),
        (description, False, False),
        (title, False, False),
    ):
        if not text:
            continue
        link = _best_link(text, hosts, scheme_less=is_structured, named=named)
        if link is None and is_own:
            link = _believed(text, hosts)
        if link is not None and link.is_supported:
            if not hosts.preferred or link.platform in hosts.preferred:
                return link
            supported = supported or link
        recognised = recognised or link
        if is_structured and named is None:
            named = link.platform if link else _named_platform(text)
    return supported or recognised


def find_all_links(
    text: str, *, hosts: MeetingHosts = DEFAULT_HOSTS, scheme_less: bool = False
) -> list[Candidate]:
    """Every link that the extractor sees in a text, in the order in which it looks at them, each once."""
    return [_look_at(url, hosts) for url in _links_in(text, hosts, scheme_less=scheme_less)]


def parse_meeting_url(url: str, *, hosts: MeetingHosts = DEFAULT_HOSTS) -> MeetingLink | None:
    """The meeting that one link joins, or None. The link may be wrapped; `https://` may be missing."""
    url = _visible(url.strip().strip("<>"))
    if len(url.split()) != 1:
        return None
    if "://" not in url and _has_known_host(url, hosts):
        url = f"https://{url}"
    return _look_at(url, hosts).link or _look_at(url.rstrip(_TRAILING), hosts).link


# `?pwd=`, also percent-encoded (%3Fpwd%3D), inside URL Defense v2 (-3Fpwd-3D) and in HTML (&amp;pwd=).
_SECRET = re.compile(
    r"((?:\b|%(?:25){0,3}(?:3f|26|23)|-3f|-26)(?:pwd|p|tk|zak|jwt|roomkey)(?:=|%(?:25){0,3}3d|-3d))[^&#\s\"<>]+",
    re.IGNORECASE,
)
# BlueJeans writes the pass code into the path.
_BLUEJEANS_SECRET = re.compile(r"(bluejeans\.com/[0-9]+/)[^?#\s\"<>]+", re.IGNORECASE)


def redact(url_or_text: str) -> str:
    """The same text with the secrets of meeting links (pwd, p, tk, zak, jwt, roomKey) masked, for logs."""
    return _BLUEJEANS_SECRET.sub(r"\1***", _SECRET.sub(r"\1***", url_or_text))


def _best_link(text: str, hosts: MeetingHosts, *, scheme_less: bool, named: str | None) -> MeetingLink | None:
    """The first supported link: preferred, then named, then any; else the first recognised one."""
    best: MeetingLink | None = None
    best_rank = (False, False)
    recognised: MeetingLink | None = None
    for url in _links_in(text, hosts, scheme_less=scheme_less):
        link = _look_at(url, hosts).link
        if link is None:
            continue
        if not link.is_supported:
            recognised = recognised or link
            continue
        rank = not hosts.preferred or link.platform in hosts.preferred, named in {None, link.platform}
        if rank == (True, True):
            return link
        if best is None or rank > best_rank:
            best, best_rank = link, rank
    return best or recognised


def _believed(text: str, hosts: MeetingHosts) -> MeetingLink | None:
    """A field that is one link, by its host."""
    url = text.strip()
    inner, _ = _unwrap_and_recognise(url, hosts)
    parts = split_url(url if inner is None else inner)
    if isinstance(parts, Refusal) or len(url.split()) != 1:
        return None
    return believe(parts, hosts)


def _named_platform(text: str) -> str | None:
    words = text[:1000].lower()
    return next((platform for name, platform in _NAMES if name in words), None)


# From text to links


def _links_in(text: str, hosts: MeetingHosts, *, scheme_less: bool) -> Iterator[str]:
    """All links seen in a text or HTML: `href` first, then in the order of the text, each once."""
    text = _capped(text)
    has_links = "://" in text or "%" in text or "&#" in text or "&colon" in text or "&sol" in text
    if not has_links and not (scheme_less and "." in text):
        return
    if "&" in text:
        text = _ENTITY.sub(_unescaped, text)
    if "\\" in text:
        text = _ESCAPED.sub("", text)
    if "<" in text:
        text = _WORD_BREAK.sub("", text)
    seen: set[str] = set()
    url_pattern = _ANY_URL if any(scheme in text for scheme in _RARE_SCHEMES) else _URL
    for href in (_ANY_HREF if "HREF" in text else _HREF).finditer(text):
        url = _visible((href[1] or href[2] or "").strip())  # exact: it may end in punctuation
        if url not in seen and url_pattern.match(url):
            seen.add(url)
            yield url
    for url in _urls_in_order(text, url_pattern):
        if url not in seen:
            seen.add(url)
            yield url
    if scheme_less:
        for word in _WORD.finditer(text):
            url = _cleaned(word[0])
            if "/" in url and "://" not in url and _has_known_host(url, hosts):
                url = f"https://{url}"
                if url not in seen:
                    seen.add(url)
                    yield url


def _capped(text: str) -> str:
    """The start of a long text, up to the end of a word: half a link would be another link."""
    if len(text) <= MAX_TEXT_LENGTH:
        return text
    last_stop = _STOP_CHARACTER.search(text[MAX_TEXT_LENGTH::-1])
    return text[: MAX_TEXT_LENGTH - last_stop.start()] if last_stop else ""


def _unescaped(entity: re.Match[str]) -> str:
    name = entity[1]
    return html5.get(f"{name};", entity[0]) if name else html.unescape(entity[0])


def _urls_in_order(text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    position = 0
    while found := pattern.search(text, position):
        url, position = found[0], found.end()
        if url[-1] == "=":
            url, position = _joined_over_soft_breaks(text, url, position)
        yield _cleaned(url)


def _joined_over_soft_breaks(text: str, url: str, position: int) -> tuple[str, int]:
    """A link that quoted-printable broke over lines (RFC 2045 6.7), and where it ends.

    A link may also end in `=` on its own. Within quoted-printable every other `=` is written as `=3D`.
    """
    pieces = [url]
    while pieces[-1].endswith("=") and not _STRAY_EQUALS.search(pieces[-1][:-1]):
        line_break = 2 if text.startswith("\r\n", position) else 1 if text.startswith("\n", position) else 0
        more = _REST_OF_URL.match(text, position + line_break) if line_break else None
        if more is None or more[0].startswith(("http://", "https://")):
            break
        pieces[-1] = pieces[-1][:-1]
        pieces.append(more[0])
        position = more.end()
    return "".join(pieces).replace("=3D", "=") if len(pieces) > 1 else url, position


def _cleaned(url: str) -> str:
    """Without the punctuation of the sentence around it, and `_visible`."""
    return _visible(url).rstrip(_TRAILING)


def _visible(url: str) -> str:
    """Without invisible characters, with plain hyphens, and without what is left of HTML's escaping."""
    url = url.replace("&amp;", "&")
    return url if url.isascii() else url.translate(_CLEANED)


def _has_known_host(url: str, hosts: MeetingHosts) -> bool:
    """Whether a text without scheme starts with the host of a meeting service or of a wrapper."""
    parts = split_url(f"https://{url}")
    if isinstance(parts, Refusal) or "." not in parts.host:
        return False
    outcome = _read(parts, hosts)
    return not (isinstance(outcome, Refusal) and outcome.is_final)


# From link to meeting


def find_platform(url: str, hosts: MeetingHosts = DEFAULT_HOSTS) -> str | None:
    """The meeting service on whose host a link is, even where its path is none that is known here."""
    inner, outcome = _unwrap_and_recognise(url, hosts)
    if isinstance(outcome, MeetingLink):
        return outcome.platform
    parts = split_url(url if inner is None else inner)
    return platform_of_host(parts.host, hosts) if isinstance(parts, Url) else None


def _look_at(url: str, hosts: MeetingHosts) -> Candidate:
    inner, outcome = _unwrap_and_recognise(url, hosts)
    if isinstance(outcome, MeetingLink):
        return Candidate(url, inner, outcome, None)
    if not outcome.is_final and (glued := _SEPARATOR_OF_LISTS.search(url)):
        first_inner, first = _unwrap_and_recognise(url[: glued.start()], hosts)
        if isinstance(first, MeetingLink):
            return Candidate(url, first_inner, first, None)
    return Candidate(url, inner, None, outcome.reason)


def _unwrap_and_recognise(url: str, hosts: MeetingHosts) -> tuple[str | None, MeetingLink | Refusal]:
    """(what was inside the wrappers or None, what that is)"""
    inner: str | None = None
    for _ in range(MAX_WRAPPERS + 1):
        outcome = _decode_and_read(url if inner is None else inner, hosts)
        if not isinstance(outcome, Inner):
            return inner, outcome
        inner = _visible(outcome.url.strip())
    return inner, Refusal(f"It is wrapped more than {MAX_WRAPPERS} times.", is_final=True)


def _decode_and_read(url: str, hosts: MeetingHosts) -> Outcome:
    """Read a link as written, then percent-decoded up to three times; the first refusal says most."""
    refusal: Refusal | None = None
    for _ in range(MAX_DECODINGS + 1):
        parts = split_url(url)
        outcome = _read(parts, hosts) if isinstance(parts, Url) else parts
        if not isinstance(outcome, Refusal):
            if "://" in url[8:] and isinstance(outcome, MeetingLink):
                return Refusal("It is more than one link written together.")
            return outcome
        refusal = refusal or outcome
        decoded = unquote(url)
        if outcome.is_final or decoded == url:
            break
        url = decoded
    return refusal or Refusal("It is not an http or https link.")


def _read(url: Url, hosts: MeetingHosts) -> Outcome:
    inner: Inner | Refusal | None = unwrap(url)
    return recognise(url, hosts) if inner is None else inner
