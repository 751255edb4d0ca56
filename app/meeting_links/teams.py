"""Microsoft Teams: join links in their two forms, and the launcher pages that hold one."""

import base64
import re
from urllib.parse import quote, unquote

import orjson

from app.meeting_links.urls import Inner, MeetingLink, Outcome, Refusal, Url, build_link

_NUMBER = re.compile(r"[0-9]{10,15}")
_IDENTIFIER = re.compile(r"[0-9A-Za-z-]{1,64}")
_THREAD = re.compile(r"19:[0-9A-Za-z_=+-]+@(?:thread\.(?:v2|tacv2|skype)|unq\.gbl\.spaces)")
_MAX_DECODINGS = 3

_NOT_A_JOIN_LINK = Refusal("This Teams page does not join a meeting.")
_NO_ORGANIZER = Refusal("The Teams link does not name its tenant and organizer (Tid and Oid).")


def recognise_teams(url: Url) -> Outcome:
    """A link on one of the hosts of Teams (docs/reference/meeting-links.md, "Platforms")."""
    if url.fragment.startswith("/"):
        # `/_#/l/meetup-join/...`, `/v2/?meetingjoin=true#/l/...`: the page's script reads the rest.
        return _route(url.host, url.fragment)
    segments = url.segments()
    match [segment.lower() for segment in segments]:
        case ["meet", number] if _NUMBER.fullmatch(number):
            return build_link(_as_written(url), "teams", number)
        case ["l", "meetup-join", _, *_]:
            return _meetup_join(url, segments)
        case ["dl", "launcher", *_]:
            return _launcher(url)
        case ["light-meetings", "launch"]:
            return _light_meeting(url)
        case _:
            return _NOT_A_JOIN_LINK


def _meetup_join(url: Url, segments: list[str]) -> MeetingLink | Refusal:
    thread = unquote(segments[2])
    message = segments[3] if len(segments) > 3 else "0"
    if not _THREAD.fullmatch(thread) or not message.isalnum():
        return _NOT_A_JOIN_LINK
    context = _json_object(url.param("context"))
    tenant, organizer = context.get("tid", ""), context.get("oid", "")
    if not _IDENTIFIER.fullmatch(tenant) or not _IDENTIFIER.fullmatch(organizer):
        return _NO_ORGANIZER
    return build_link(_as_written(url), "teams", f"{thread}/{tenant.lower()}/{organizer.lower()}")


def _as_written(url: Url) -> str:
    query = f"?{url.query}" if url.query else ""
    fragment = f"#{url.fragment}" if url.fragment else ""
    return f"https://{url.host}{url.path}{query}{fragment}"


def _route(host: str, route: str) -> Inner:
    """The link that a launcher's page leads to.

    Launchers hold the thread unencoded, and parameters of their own: the link to hand out is the one of invitations.
    """
    path, _, query = route.partition("?")
    inner = Url("https", host, path, query, "")
    segments = inner.segments()
    match [segment.lower() for segment in segments]:
        case ["l", "meetup-join", _, *_]:
            path = f"/l/meetup-join/{quote(unquote(segments[2]), safe='')}/{'/'.join(segments[3:4]) or '0'}"
            query = f"context={quote(inner.raw_param('context'), safe='%')}"
        case ["meet", number]:
            path = f"/meet/{number}"
            query = f"p={inner.raw_param('p')}" if inner.raw_param("p") else ""
    return Inner(f"https://{host}{path}" + (f"?{query}" if query else ""))


def _launcher(url: Url) -> Inner | Refusal:
    """`/dl/launcher/launcher.html?url=%2F_%23%2Fl%2Fmeetup-join...`"""
    inner = url.param("url")
    for _ in range(_MAX_DECODINGS):
        page, separator, route = inner.partition("#")
        if separator and page.startswith("/") and route.startswith("/"):
            return _route(url.host, route)
        inner = unquote(inner)
    return _NOT_A_JOIN_LINK


def _light_meeting(url: Url) -> Inner | Refusal:
    """`/light-meetings/launch?coords=<base64 of a JSON object>`"""
    coords = url.param("coords").rstrip("=").replace("-", "+").replace("_", "/")
    try:
        text = base64.b64decode(coords + "=" * (-len(coords) % 4)).decode()
    except ValueError:
        return _NOT_A_JOIN_LINK
    fields = _json_object(text)
    if "meetingcode" in fields:
        code, passcode = quote(fields["meetingcode"], safe=""), quote(fields.get("passcode", ""), safe="")
        return Inner(f"https://{url.host}/meet/{code}" + (f"?p={passcode}" if passcode else ""))
    thread, message = fields.get("conversationid", ""), fields.get("messageid", "") or "0"
    tenant, organizer = fields.get("tenantid", ""), fields.get("organizerid", "")
    if not tenant or not organizer:
        return _NO_ORGANIZER
    context = orjson.dumps({"Tid": tenant, "Oid": organizer}).decode()
    return Inner(
        f"https://{url.host}/l/meetup-join/{quote(thread, safe='')}/{quote(message, safe='')}"
        f"?context={quote(context, safe='')}"
    )


def _json_object(text: str) -> dict[str, str]:
    """The string members of a JSON object, names in lower case (both spellings occur); {} if it is none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(value, dict):
        return {}
    return {name.lower(): member for name, member in value.items() if isinstance(member, str)}
