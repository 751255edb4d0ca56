"""Writing iCalendar objects (RFC 5545) with the icalendar library, which escapes and folds.

`export.py` writes events as files, `app/itip/build.py` writes scheduling messages. They share the product id, the
characters that are left out, and the form of addresses and attendees.
"""

import re
from collections.abc import Iterable

from icalendar import Calendar, Component, vCalAddress
from icalendar.enums import CUTYPE, PARTSTAT, ROLE

from app.ical.participation import PARTSTATS, ParticipationStatus

PRODUCT_ID = "-//calbridge//calbridge//EN"
# All control characters but tab and line feed. Some readers take NEL and the separators of Unicode for line ends.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029])


def strip_controls(text: str) -> str:
    """`text` with LF as line break, and without other control characters except tabs."""
    return text.replace("\r\n", "\n").translate(_CONTROLS)


def write_calendar(components: Iterable[Component], *, method: str | None = None) -> bytes:
    """A VCALENDAR of these components, in this order; with `method`, a scheduling message (RFC 5546)."""
    calendar = Calendar()
    calendar.add("prodid", PRODUCT_ID)
    calendar.add("version", "2.0")
    if method is not None:
        calendar.add("calscale", "GREGORIAN")
        calendar.add("method", method)
    for component in components:
        calendar.add_component(component)
    text: bytes = calendar.to_ical()
    return text


def cal_address(email: str, name: str | None) -> vCalAddress:
    """An ORGANIZER or ATTENDEE. `name` becomes CN and must be on one line."""
    address = vCalAddress(mailto("".join(strip_controls(email).split())))
    if name is not None:
        address.params["CN"] = name
    return address


def attendee(
    email: str,
    name: str | None,
    *,
    status: ParticipationStatus,
    is_optional: bool,
    is_resource: bool = False,
    with_rsvp: bool = False,
) -> vCalAddress:
    """An ATTENDEE with CUTYPE, ROLE and PARTSTAT. `with_rsvp`: a reply is asked for."""
    address = cal_address(email, name)
    address.params["CUTYPE"] = CUTYPE.RESOURCE if is_resource else CUTYPE.INDIVIDUAL
    address.params["ROLE"] = ROLE.OPT_PARTICIPANT if is_optional else ROLE.REQ_PARTICIPANT
    address.params["PARTSTAT"] = PARTSTATS[status]
    if with_rsvp:
        address.params["RSVP"] = "TRUE"
    return address


def chair(email: str, name: str | None) -> vCalAddress:
    """The ATTENDEE of an organizer, who takes part. Without RSVP: no reply is asked for."""
    address = cal_address(email, name)
    address.params.update({"ROLE": ROLE.CHAIR, "PARTSTAT": PARTSTAT.ACCEPTED})
    return address


def mailto(email: str) -> str:
    """The address as a URI (RFC 6068), with those characters encoded that would end or change it.

    No others are encoded, because many clients compare addresses without decoding them.
    """
    return "mailto:" + re.sub("[%?#&]", lambda found: f"%{ord(found[0]):02X}", email)
