"""The hosts of each meeting service, and those of their addresses that join a meeting.

The table is in docs/reference/meeting-links.md, "Platforms". One function per service: it gets a link on one of the
service's hosts and returns the meeting, with the link inside (Teams launchers), or with the reason why there is none.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from app.meeting_links.teams import recognise_teams
from app.meeting_links.urls import (
    ZOOM_APP_SCHEMES,
    MeetingLink,
    Outcome,
    Refusal,
    Url,
    ascii_host,
    build_link,
    quote_url,
)

_VISIO_HOSTS = frozenset({"visio.numerique.gouv.fr", "visio.lasuite.coop", "visio.suite.anct.gouv.fr"})
_JITSI_HOSTS = frozenset({"meet.jit.si"})


@dataclass(frozen=True, slots=True)
class MeetingHosts:
    """Hosts of services that any organisation can run: La Suite Meet ("Visio") and Jitsi Meet.

    Host names without scheme, port or pattern; anything else raises ValueError. `preferred`: platforms (the words of
    `PLATFORMS`) of which a link is taken where an event has several; none: the first link.
    """

    visio: frozenset[str] = _VISIO_HOSTS
    jitsi: frozenset[str] = _JITSI_HOSTS
    preferred: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        # Written by an operator: any case, perhaps in another script. Links are compared in the same form.
        object.__setattr__(self, "visio", _host_names(self.visio))
        object.__setattr__(self, "jitsi", _host_names(self.jitsi))


def _host_names(names: frozenset[str]) -> frozenset[str]:
    hosts = {name: ascii_host(name.strip()) for name in names if name.strip()}
    if wrong := [name for name, host in hosts.items() if not host]:
        raise ValueError(f"not a host name: {', '.join(sorted(wrong))}")
    return frozenset(hosts.values())


DEFAULT_HOSTS = MeetingHosts()

_DIGITS_9_TO_11 = re.compile(r"[0-9]{9,11}")
_DIGITS_9_TO_12 = re.compile(r"[0-9]{9,12}")
_DIGITS_9_TO_19 = re.compile(r"[0-9]{9,19}")
_DIGITS = re.compile(r"[0-9]{4,20}")
_CODE_3_4_3 = re.compile(r"[a-z]{3}-[a-z]{4}-[a-z]{3}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~@+-]{0,99}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{1,98}[a-z0-9]")
_WEBEX_MTID = re.compile(r"[A-Za-z0-9]{8,64}")
_FACETIME_CALL = re.compile(r"[A-Za-z0-9_=+/-]{1,200}")
_WEBEX_UUID = re.compile(r"[0-9a-f-]{32,36}")

# Parameters that concern the sender alone: `zak` starts a meeting as its host, `uname` is a name.
_ZOOM_DROPPED = frozenset({"zak", "uname"})


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# They join no meeting, however they are given.
_REGISTRATION = Refusal("It is a registration page, which gives each person a link of their own.")
_DIAL_IN = Refusal("It is a page of dial-in numbers, not a meeting.")
_LIVE_STREAM = Refusal("It is a live stream to watch, not a meeting to join.")


def _not_a_meeting(service: str) -> Refusal:
    return Refusal(f"This address of {service} does not join a meeting.")


def _link(
    url: Url,
    platform: str,
    meeting_id: str,
    *,
    path: str | None = None,
    drop: Collection[str] = ("zak",),
    keep_fragment: bool = True,
    is_supported: bool = True,
) -> MeetingLink | Refusal:
    """The link as written, over https and with its characters encoded; `path` replaces the path."""
    fragment = f"#{url.fragment}" if keep_fragment and url.fragment else ""
    text = f"https://{url.host}{url.path if path is None else path}{url.query_without(drop)}{fragment}"
    return build_link(text, platform, meeting_id, is_supported=is_supported)


def _zoom(url: Url) -> Outcome:
    segments = url.segments()
    match [segment.lower() for segment in segments]:
        case ["join" | "start"] if _DIGITS_9_TO_11.fullmatch(url.param("confno")):
            # The application's link, zoommtg://zoom.us/join?confno=...&pwd=..., as a web link of the same meeting.
            number = url.param("confno")
            given = "&".join(f"{name}={url.raw_param(name)}" for name in ("pwd", "tk") if url.raw_param(name))
            return _zoom_link(Url("https", url.host, f"/j/{number}", given, ""), number)
        case ["j" | "w" | "webinar", number] | ["wc", number, "join"] | ["wc", "join", number] if (
            _DIGITS_9_TO_11.fullmatch(number)
        ):
            return _zoom_link(url, number)
        case ["s", number] | ["wc", number, "start"] | ["wc", "start", number] if _DIGITS_9_TO_11.fullmatch(
            number
        ):
            # The host's own start link: a guest joins the same meeting at /j/.
            return _zoom_link(url, number, path=f"/j/{number}")
        case ["my", name] if _NAME.fullmatch(name):
            return _zoom_link(url, name)
        case ["meeting" | "webinar", "register", *_]:
            return _REGISTRATION
        case ["webinar", _] if _NAME.fullmatch(segments[1]):
            # A webinar page without the number: nothing that a participant's program could dial.
            return _zoom_link(url, segments[1], is_supported=False)
        case ["u", *_] | ["zoomconference"]:
            return _DIAL_IN
        case [] if url.host.endswith(".zm.page"):
            return _zoom_link(url, url.host.removesuffix(".zm.page"), is_supported=False)
        case _:
            return _not_a_meeting("Zoom")


def _zoom_link(
    url: Url, meeting_id: str, *, path: str | None = None, is_supported: bool = True
) -> MeetingLink | Refusal:
    # Zoom's fragments (`#success`) are the state of a page.
    return _link(
        url,
        "zoom",
        meeting_id,
        path=path,
        drop=_ZOOM_DROPPED,
        keep_fragment=False,
        is_supported=is_supported,
    )


def _google_meet(url: Url) -> Outcome:
    segments = url.segments()
    match [segment.lower() for segment in segments]:
        case [code] | ["_meet", code] if _CODE_3_4_3.fullmatch(code):
            return build_link(f"https://{url.host}/{code}", "google_meet", code)
        case ["lookup", _] if _NAME.fullmatch(segments[1]):
            return build_link(f"https://{url.host}/lookup/{segments[1]}", "google_meet", segments[1])
        case _:
            return _not_a_meeting("Google Meet")


def _google_short(url: Url) -> Outcome:
    match url.segments():
        case ["meet", name] if _NAME.fullmatch(name):
            return _link(url, "google_meet", name, is_supported=False)
        case _:
            return _not_a_meeting("Google Meet")


def _hangouts(url: Url) -> Outcome:
    match url.segments():
        case ["hangouts" | "call", _, *_] as segments:
            return _link(url, "hangouts", quote_url("/".join(segments)), is_supported=False)
        case _:
            return _not_a_meeting("Google Hangouts")


def _webex(url: Url) -> Outcome:
    site = url.host.removesuffix(".webex.com")
    if site in {"www", "help", "developer", "webex.com"}:
        return _not_a_meeting("Webex")
    segments = url.segments()
    words = [segment.lower() for segment in segments]
    if "register" in words:
        return _REGISTRATION
    if words and words[-1] == "globalcallin.php":
        return _DIAL_IN
    mtid = url.param("mtid")
    match words:
        case [_, "j.php" | "g.php"] | [_, "k2", _] | ["j.php" | "g.php"] if _WEBEX_MTID.fullmatch(mtid):
            return _link(url, "webex", mtid.lower())
        case ["meet" | "join", _] if _NAME.fullmatch(unquote(segments[1])):
            # A personal room is a name on one site; another site may have the same name.
            return _link(url, "webex", f"{site}/{unquote(words[1])}")
        case ["m", uuid] if _WEBEX_UUID.fullmatch(uuid):
            return _link(url, "webex", uuid)
        case ["wbxmjs", "joinservice", *_] if _WEBEX_MTID.fullmatch(mtid):
            return _link(url, "webex", mtid.lower())
        case ["wbxmjs", "joinservice", *_, uuid] if _WEBEX_UUID.fullmatch(uuid):
            return _link(url, "webex", uuid)
        case _:
            return _not_a_meeting("Webex")


def _goto(url: Url) -> Outcome:
    is_webinar = url.host.endswith("gotowebinar.com")
    number_pattern = _DIGITS_9_TO_19 if is_webinar else _DIGITS_9_TO_12
    match [segment.lower() for segment in url.segments()]:
        case ["register" | "registration", *_]:
            return _REGISTRATION
        case ["join", number, *_] | [number] if number_pattern.fullmatch(number):
            return _link(url, "goto", number)
        case [] if number_pattern.fullmatch(url.param("meetingid")):
            return _link(url, "goto", url.param("meetingid"))
        case _:
            return _not_a_meeting("GoTo")


def _goto_room(url: Url) -> Outcome:
    match url.segments():
        case [name] if _NAME.fullmatch(name):
            return _link(url, "goto", name.lower())
        case _:
            return _not_a_meeting("GoTo")


_WHEREBY_PAGES = _words(
    "about affiliate api apps blog business careers contact cookies customers developers docs download downloads"
    " embedded features free help home industries information integrations jobs legal login logout partners press"
    " pricing privacy product products resources security settings sign-in sign-up signin signup solutions status"
    " support team teams terms tos trust use-cases user users video-conferencing"
)
_WHEREBY_SITES = frozenset(
    {"www", "api", "blog", "cdn", "developer", "docs", "get", "help", "status", "support"}
)


def _whereby(url: Url) -> Outcome:
    organization = url.host.removesuffix("whereby.com").removesuffix(".")
    match url.segments():
        case [room] if (
            organization not in _WHEREBY_SITES
            and room.lower() not in _WHEREBY_PAGES
            and _NAME.fullmatch(room)
        ):
            name = f"{organization}/{room}" if organization else room
            return _link(url, "whereby", name.lower())
        case _:
            return _not_a_meeting("Whereby")


_JITSI_PAGES = _words(
    "static libs images sounds css fonts lang config.js interface_config.js manifest.json favicon.ico robots.txt"
    " http-bind xmpp-websocket colibri-ws external_api.js about api"
)


def _is_room(room: str) -> bool:
    """Whether a decoded path segment can be a Jitsi room: any script, no control characters."""
    return (
        bool(room.strip(".")) and len(room) <= 200 and room.isprintable() and room.lower() not in _JITSI_PAGES
    )


def _jitsi(url: Url) -> Outcome:
    rooms = [unquote(segment) for segment in url.segments()]
    if len(rooms) == 1 and _is_room(rooms[0]):
        return _link(url, "jitsi", f"{url.host}/{rooms[0].lower()}")
    return _not_a_meeting("Jitsi")


def _jaas(url: Url) -> Outcome:
    """8x8's hosted Jitsi: `8x8.vc/<tenant>/<room>`."""
    rooms = [unquote(segment) for segment in url.segments()]
    if len(rooms) == 2 and all(_is_room(room) for room in rooms):
        return _link(url, "jitsi", f"{url.host}/{rooms[0].lower()}/{rooms[1].lower()}")
    return _not_a_meeting("8x8")


# Pages of the La Suite Meet web application that a room's name cannot be.
_VISIO_PAGES = _words(
    "accessibilite accessibility admin api assets callback conditions-utilisation create custom feedback home legal"
    " licenses login logout media mentions-legales recording recordings rooms sdk static terms test-connection"
)


def _visio(url: Url) -> Outcome:
    match url.segments():
        case [slug] if _SLUG.fullmatch(slug.lower()) and slug.lower() not in _VISIO_PAGES:
            return _link(url, "visio", f"{url.host}/{slug.lower()}")
        case _:
            return _not_a_meeting("Visio")


def _bluejeans(url: Url) -> Outcome:
    match url.segments():
        case [number] | [number, _] if _DIGITS.fullmatch(number):
            return _link(url, "bluejeans", number, is_supported=False)
        case _:
            return _not_a_meeting("BlueJeans")


_CHIME_PAGES = _words("dialinnumbers download meetings")


def _chime(url: Url) -> Outcome:
    match url.segments():
        case ["meetings", name] | [name] if _NAME.fullmatch(name) and name.lower() not in _CHIME_PAGES:
            return _link(url, "chime", name.lower(), is_supported=False)
        case _:
            return _not_a_meeting("Chime")


def _slack(url: Url) -> Outcome:
    match url.segments():
        case ["huddle", team, channel] if _NAME.fullmatch(team) and _NAME.fullmatch(channel):
            return _link(url, "slack", f"{team}/{channel}", is_supported=False)
        case _:
            return _not_a_meeting("Slack")


def _ringcentral(url: Url) -> Outcome:
    match url.segments():
        case ["join" | "j", number] if _DIGITS.fullmatch(number):
            return _link(url, "ringcentral", number, is_supported=False)
        case _:
            return _not_a_meeting("RingCentral")


def _discord(url: Url) -> Outcome:
    match url.segments():
        case [code] if _NAME.fullmatch(code):
            return _link(url, "discord", code, is_supported=False)
        case _:
            return _not_a_meeting("Discord")


def _facetime(url: Url) -> Outcome:
    # `/join#v=1&p=<key of the call>&k=<secret>`: what names the call stands in the fragment.
    call = Url(url.scheme, url.host, url.path, url.fragment, "").param("p")
    if url.segments() == ["join"] and _FACETIME_CALL.fullmatch(call):
        return _link(url, "facetime", call, is_supported=False)
    return _not_a_meeting("FaceTime")


def _livekit(url: Url) -> Outcome:
    match url.segments():
        case ["rooms", room] if _NAME.fullmatch(room):
            return _link(url, "livekit", room, is_supported=False)
        case _:
            return _not_a_meeting("LiveKit")


def _cal_video(url: Url) -> Outcome:
    match url.segments():
        case ["video", call] if _NAME.fullmatch(call):
            return _link(url, "cal_video", call, is_supported=False)
        case _:
            return _not_a_meeting("Cal Video")


_DAILY_SITES = frozenset({"", "www", "api", "blog", "dashboard", "docs", "help", "status"})


def _daily(url: Url) -> Outcome:
    organization = url.host.removesuffix("daily.co").removesuffix(".")
    match url.segments():
        case [room] if organization not in _DAILY_SITES and _NAME.fullmatch(room):
            return _link(url, "daily", f"{organization}/{room}", is_supported=False)
        case _:
            return _not_a_meeting("Daily")


def _dial_in(_: Url) -> Outcome:
    return _DIAL_IN


def _meet_stream(_: Url) -> Outcome:
    return _LIVE_STREAM


_Recogniser = Callable[[Url], Outcome]

_BY_HOST: dict[str, _Recogniser] = {
    "meet.google.com": _google_meet,
    "stream.meet.google.com": _meet_stream,
    "tel.meet": _dial_in,
    "g.co": _google_short,
    "hangouts.google.com": _hangouts,
    "teams.live.com": recognise_teams,
    "teams.cloud.microsoft": recognise_teams,
    "dialin.teams.microsoft.com": _dial_in,
    "dialin.teams.microsoft.us": _dial_in,
    "meet.goto.com": _goto,
    "8x8.vc": _jaas,
    "chime.aws": _chime,
    "app.chime.aws": _chime,
    "app.slack.com": _slack,
    "v.ringcentral.com": _ringcentral,
    "meetings.ringcentral.com": _ringcentral,
    "discord.gg": _discord,
    "facetime.apple.com": _facetime,
    "meet.livekit.io": _livekit,
    "app.cal.com": _cal_video,
}

# The host itself and every host below it.
_BY_DOMAIN: dict[str, _Recogniser] = {
    "zoom.us": _zoom,
    "zoom.com": _zoom,
    "zoomgov.com": _zoom,
    "zoom.com.cn": _zoom,
    "zoom-x.de": _zoom,
    "zm.page": _zoom,
    "teams.microsoft.com": recognise_teams,
    "teams.microsoft.us": recognise_teams,
    "webex.com": _webex,
    "gotomeeting.com": _goto,
    "gotowebinar.com": _goto,
    "gotomeet.me": _goto_room,
    "whereby.com": _whereby,
    "bluejeans.com": _bluejeans,
    "daily.co": _daily,
}


_NAMES: Mapping[_Recogniser, str] = {
    _zoom: "zoom",
    _google_meet: "google_meet",
    _google_short: "google_meet",
    recognise_teams: "teams",
    _webex: "webex",
    _goto: "goto",
    _goto_room: "goto",
    _whereby: "whereby",
    _jitsi: "jitsi",
    _jaas: "jitsi",
    _visio: "visio",
    _hangouts: "hangouts",
    _bluejeans: "bluejeans",
    _chime: "chime",
    _slack: "slack",
    _ringcentral: "ringcentral",
    _discord: "discord",
    _facetime: "facetime",
    _livekit: "livekit",
    _cal_video: "cal_video",
    _daily: "daily",
}
PLATFORMS = tuple(dict.fromkeys(_NAMES.values()))


def platform_of_host(host: str, hosts: MeetingHosts) -> str | None:
    """The meeting service that a host belongs to, whatever the path says."""
    recogniser = _find_recogniser(host, hosts)
    return _NAMES.get(recogniser) if recogniser is not None else None


def recognise(url: Url, hosts: MeetingHosts) -> Outcome:
    """The meeting of a link, or a refusal: by its host and then by its path."""
    recogniser = _find_recogniser(url.host, hosts)
    if recogniser is None:
        return Refusal(f"{url.host} is not the host of a known meeting service.", is_final=True)
    if url.scheme in ZOOM_APP_SCHEMES and recogniser is not _zoom:
        return Refusal("It is a link of the Zoom application to a host that is not Zoom's.", is_final=True)
    return recogniser(url)


def _find_recogniser(host: str, hosts: MeetingHosts) -> _Recogniser | None:
    if host in hosts.visio:
        return _visio
    if host in hosts.jitsi:
        return _jitsi
    recogniser = _BY_HOST.get(host)
    domain = host
    while recogniser is None and domain:
        recogniser = _BY_DOMAIN.get(domain)
        domain = domain.partition(".")[2]
    return recogniser


# Their links are believed where a provider gives them as an event's own: others are recognised only.
_BELIEVED = frozenset({"zoom", "google_meet", "teams", "webex", "goto", "whereby", "jitsi", "visio"})
# A stranger's invitation may fill these fields, too. Pages of the services lead on to any address that they are given
# (`meet.google.com/linkredirect?dest=`), and a short link leads anywhere.
_ADDRESS_INSIDE = re.compile(r"//|\\")
_SHORT_LINKS = frozenset({"g.co"})
_MOST_DECODINGS = 3


def believe(url: Url, hosts: MeetingHosts) -> MeetingLink | None:
    """A link that the provider itself gives as the one to join: its host alone decides."""
    platform = platform_of_host(url.host, hosts)
    if platform not in _BELIEVED or url.scheme in ZOOM_APP_SCHEMES or not url.segments():
        return None
    outcome = recognise(url, hosts)
    if outcome in (_REGISTRATION, _DIAL_IN, _LIVE_STREAM):
        return None
    if not isinstance(outcome, MeetingLink):
        if url.host in _SHORT_LINKS or _leads_on(url):
            return None
        drop = _ZOOM_DROPPED if platform == "zoom" else ()
        outcome = _link(url, platform, quote_url(url.path.strip("/")), drop=drop)
    return outcome if isinstance(outcome, MeetingLink) else None


def _leads_on(url: Url) -> bool:
    """Whether the link contains another address, as written or percent-encoded up to three times."""
    text = f"{url.path}?{url.query}#{url.fragment}"
    for _ in range(_MOST_DECODINGS + 1):
        if _ADDRESS_INSIDE.search(text):
            return True
        text = unquote(text)
    return False
