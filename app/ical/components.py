"""The text of an iCalendar object (RFC 5545 section 3) as components and content lines.

The icalendar library decodes values and parameters. The walk over the file is written here, because feeds are large
and of any quality: the library decodes a file before it unfolds it, though a fold may split a UTF-8 character; takes
half a millisecond for each event, wanted or not; and remembers the time zones of one file for files of other owners.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from icalendar.parser import Parameters
from icalendar.parser.property import unescape_backslash

from app.ical.errors import CalendarUnreadable

_BEGIN, _END = b"BEGIN:VCALENDAR", b"END:VCALENDAR"
_BOM = b"\xef\xbb\xbf"
_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\r"})
# The lookbehind: a long run of line breaks is not tried at each of them.
_FOLD = re.compile(rb"(?<!\n)\n++[ \t]")
_EDGE = re.compile(rb"^(BEGIN|END):[ \t]*([A-Z0-9-]+)[ \t]*$", re.IGNORECASE | re.MULTILINE)
_LINE = re.compile(r'([A-Z0-9-]+)((?:;(?:[^";:]|"[^"]*")*+)*+):(.*)', re.IGNORECASE)
# With an unbalanced quote, the parameters end at the first colon.
_BROKEN_LINE = re.compile(r"([A-Z0-9-]+)(;[^:]*):(.*)", re.IGNORECASE)
_LONGEST_PARAMETERS = 4_000
_MOST_LINES = 20_000
_DEEPEST = 8
_MOST_CHILDREN = 1_000


class Line(NamedTuple):
    """One unfolded content line: `name` in upper case, `parameters` and `value` as written."""

    name: str
    parameters: str
    value: str

    @property
    def text(self) -> str:
        """The value as TEXT (RFC 5545 section 3.3.11), unescaped, without white space around it."""
        return str(unescape_backslash(self.value)).strip()

    def parameter(self, name: str) -> str | None:
        """The (first) value of a parameter; `name` in upper case."""
        return parse_parameters(self.parameters).get(name)


@dataclass(frozen=True, slots=True)
class Component:
    """The lines from a BEGIN to its END. Only a VTIMEZONE has `children`, its parts."""

    name: str
    own_text: bytes
    children: tuple["Component", ...] = ()

    def lines(self) -> Iterator[Line]:
        """The content lines, BEGIN and END too."""
        return parse_lines(self.own_text)


def normalize(body: bytes) -> bytes:
    """Unfold a feed's body, with LF line ends and without byte order mark and control characters.

    Raises CalendarUnreadable (`feed_empty`, `feed_not_ics`, `feed_truncated`) if it does not begin and end as a calendar.
    """
    text = body.removeprefix(_BOM).translate(None, _CONTROLS)
    text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").strip()
    if not text:
        raise CalendarUnreadable("The feed is empty.", code="feed_empty")
    if text[: len(_BEGIN)].upper() != _BEGIN:
        raise CalendarUnreadable(
            "The feed's address does not return a calendar: use the secret address in iCal format.",
            code="feed_not_ics",
        )
    text = _FOLD.sub(b"", text)
    if text[text.rfind(b"\n") + 1 :].upper() != _END:
        raise CalendarUnreadable("The feed breaks off before its end.", code="feed_truncated")
    return text


def split(text: bytes) -> Iterator[Component]:
    """Yield the components directly inside the calendar (or calendars) of a normalized text.

    Raises CalendarUnreadable (`feed_truncated`) if one has no end or no beginning.
    """
    stack: list[_Open] = []
    for edge in _EDGE.finditer(text):
        name = edge[2].decode("ascii").upper()
        if edge[1].upper() == b"BEGIN":
            if not _may_begin(name, stack):
                raise _damaged()
            if stack:
                stack[-1].parts.append(text[stack[-1].at : edge.start()])
            stack.append(_Open(name, edge.start()))
            continue
        # An alarm without an end ends with its event.
        while len(stack) > 2 and stack[-1].name != name:
            _close(stack, text, edge.start())
        if not stack or stack[-1].name != name:
            raise _damaged()
        component = _close(stack, text, edge.end())
        if len(stack) == 1:
            yield component
    if stack:
        raise _damaged()


def _may_begin(name: str, stack: Sequence["_Open"]) -> bool:
    if name == "VCALENDAR" or not stack:
        return name == "VCALENDAR" and not stack
    if name == "VEVENT":
        return len(stack) == 1
    is_inside_its_like = len(stack) > 1 and stack[1].name == name
    return not is_inside_its_like and len(stack) < _DEEPEST


@dataclass(slots=True)
class _Open:
    name: str
    at: int  # where its own text continues
    parts: list[bytes] = field(default_factory=list)
    children: list[Component] = field(default_factory=list)


def _close(stack: list[_Open], text: bytes, end: int) -> Component:
    closing = stack.pop()
    closing.parts.append(text[closing.at : end])
    component = Component(closing.name, b"".join(closing.parts), tuple(closing.children))
    if stack:
        stack[-1].at = end + 1
        # Only the parts of time zones are used. Alarms are many, and not kept.
        if stack[-1].name == "VTIMEZONE" and len(stack[-1].children) < _MOST_CHILDREN:
            stack[-1].children.append(component)
    return component


def _damaged() -> CalendarUnreadable:
    return CalendarUnreadable(
        "The feed is damaged: what begins in it does not end as it should.", code="feed_truncated"
    )


def parse_lines(text: bytes) -> Iterator[Line]:
    """Yield the content lines of an unfolded text, up to 20,000.

    A line that is not a content line continues the value before it.
    """
    pending: Line | None = None
    more: list[str] = []
    for written in _decode(text).split("\n", _MOST_LINES)[:_MOST_LINES]:
        if not written:
            continue
        match = _LINE.fullmatch(written) or _BROKEN_LINE.fullmatch(written)
        # "https://…" at the start of a line is the rest of a text, not a property of that name.
        if match and (match[2] or not match[3].startswith("//")):
            if pending:
                yield _with(pending, more)
            pending, more = Line(match[1].upper(), match[2][1:], match[3]), []
        else:
            more.append(written)
    if pending:
        yield _with(pending, more)


def _with(line: Line, more: list[str]) -> Line:
    return line._replace(value="\n".join([line.value, *more])) if more else line


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "\n".join(_decode_line(line) for line in text.split(b"\n"))


def _decode_line(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")


@lru_cache(maxsize=1024)
def parse_parameters(text: str) -> Mapping[str, str]:
    """Parameters by their names in upper case, with the first of several values.

    Parameters that cannot be read are left out.
    """
    if not text or len(text) > _LONGEST_PARAMETERS:
        return {}
    try:
        items = Parameters.from_ical(text).items()  # type: ignore[no-untyped-call] # the library's lack
    except ValueError:
        return _lenient_parameters(text)
    return {name.upper(): value if isinstance(value, str) else value[0] for name, value in items}


def _lenient_parameters(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().upper(): value.strip(' "') for name, _, value in pairs if value}
