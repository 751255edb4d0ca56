"""The meeting-link extractor (docs/reference/meeting-links.md): all platforms, shapes and wrappers."""

import base64
import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.meeting_links import extract, platforms, teams, urls, wrappers
from app.meeting_links.extract import (
    MeetingHosts,
    MeetingLink,
    find_all_links,
    find_meeting_link,
    find_platform,
    parse_meeting_url,
    redact,
)
from app.meeting_links.urls import Inner, Url, split_url
from app.meeting_links.wrappers import unwrap
from bench.meeting_urls import HOSTILE

TID, OID = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"
CONTEXT = quote(json.dumps({"Tid": TID, "Oid": OID}, separators=(",", ":")), safe="")
TEAMS = f"https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context={CONTEXT}"
TEAMS_ID = f"19:meeting_ABC@thread.v2/{TID}/{OID}"
TEAMS_SHORT = "https://teams.microsoft.com/meet/2345678901234?p=AbCdEf"
ZOOM = "https://us02web.zoom.us/j/81234567890?pwd=AbC.1"
MEET = "https://meet.google.com/abc-defg-hij"


def enc(text: str, times: int = 1) -> str:
    for _ in range(times):
        text = quote(text, safe="")
    return text


def b64(value: dict[str, str]) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def context(**members: Any) -> str:
    return quote(json.dumps(members), safe="")


def safe_link(url: str) -> str:
    return (
        f"https://eur03.safelinks.protection.outlook.com/?url={enc(url)}&data=05%7C02&sdata=x%3D&reserved=0"
    )


# --- one link: (written, joined at (None: as written), platform, meeting_id)

SAME = None
JOINED = [
    # Zoom
    ("https://zoom.us/j/123456789", SAME, "zoom", "123456789"),
    ("https://zoom.us/j/1234567890", SAME, "zoom", "1234567890"),
    ("https://us02web.zoom.us/j/81234567890?pwd=AbC.1", SAME, "zoom", "81234567890"),
    ("https://us02web.zoom.us./j/81234567890?pwd=AbC.1#success", ZOOM, "zoom", "81234567890"),
    ("https://acme.zoom.us/j/81234567890?pwd=AbC", SAME, "zoom", "81234567890"),
    ("HTTPS://Acme.ZOOM.us/J/81234567890?pwd=AbC", "https://acme.zoom.us/J/81234567890?pwd=AbC", "zoom", "81234567890"),
    ("http://zoom.us/j/81234567890", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    ("https://zoom.us:443/j/81234567890", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    ("https://zoom.us/j/81234567890/", SAME, "zoom", "81234567890"),
    ("https://acme.zoom.com/j/81234567890", SAME, "zoom", "81234567890"),
    ("https://zoom.com/j/81234567890", SAME, "zoom", "81234567890"),
    ("https://www.zoomgov.com/j/1612345678?pwd=x", SAME, "zoom", "1612345678"),
    ("https://zoomgov.com/j/1612345678", SAME, "zoom", "1612345678"),
    ("https://zoom.com.cn/j/81234567890", SAME, "zoom", "81234567890"),
    ("https://zoom-x.de/j/61234567890?pwd=q", SAME, "zoom", "61234567890"),
    ("https://acme.zm.page/j/81234567890", SAME, "zoom", "81234567890"),
    ("https://zoom.us/w/81234567890?tk=tok.en&pwd=p", SAME, "zoom", "81234567890"),
    ("https://zoom.us/webinar/81234567890", SAME, "zoom", "81234567890"),
    ("https://zoom.us/wc/81234567890/join?pwd=p", SAME, "zoom", "81234567890"),
    ("https://app.zoom.us/wc/join/81234567890", SAME, "zoom", "81234567890"),
    ("https://zoom.us/wc/81234567890/start", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    ("https://zoom.us/s/81234567890?zak=host.key&pwd=p", "https://zoom.us/j/81234567890?pwd=p", "zoom", "81234567890"),
    ("https://zoom.us/j/81234567890?zak=k&pwd=p&uname=Ada&omn=9", "https://zoom.us/j/81234567890?pwd=p&omn=9", "zoom", "81234567890"),
    ("https://zoom.us/j/81234567890?ZAK=k", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    ("https://zoom.us/j/81234567890?z%61k=k", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    ("https://zoom.us/my/Ada.Lovelace?pwd=p", SAME, "zoom", "ada.lovelace"),
    ("zoommtg://zoom.us/join?action=join&confno=81234567890&pwd=p&zak=k&uname=Ada", "https://zoom.us/j/81234567890?pwd=p", "zoom", "81234567890"),
    ("zoomus://acme.zoom.us/join?confno=81234567890&tk=t", "https://acme.zoom.us/j/81234567890?tk=t", "zoom", "81234567890"),
    ("zoommtg://zoom.us/start?confno=81234567890&zak=k", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    # Google Meet
    (MEET, SAME, "google_meet", "abc-defg-hij"),
    ("https://meet.google.com/ABC-defg-hij?authuser=1&hs=122&pli=1", MEET, "google_meet", "abc-defg-hij"),
    ("https://meet.google.com/_meet/abc-defg-hij", MEET, "google_meet", "abc-defg-hij"),
    ("https://meet.google.com/lookup/ada2026", SAME, "google_meet", "ada2026"),
    # Teams
    (TEAMS, SAME, "teams", TEAMS_ID),
    (TEAMS.replace("%3A", "%3a").replace("%40", "@", 1), SAME, "teams", TEAMS_ID),
    (TEAMS.replace("%", "%25"), TEAMS, "teams", TEAMS_ID),
    (TEAMS.replace("%3Ameeting", "%253Ameeting").replace("%40", "%2540"), None, "teams", TEAMS_ID),
    (f"https://teams.microsoft.com/l/meetup-join/19:meeting_ABC@thread.v2/0?context={CONTEXT}&anon=true", SAME, "teams", TEAMS_ID),
    (f"{TEAMS}&anon=true&uname=Ada#frag", SAME, "teams", TEAMS_ID),
    (f'https://teams.microsoft.com/l/meetup-join/19:meeting_ABC@thread.v2/0?context={{"Tid":"{TID}","Oid":"{OID}"}}', f"https://teams.microsoft.com/l/meetup-join/19:meeting_ABC@thread.v2/0?context=%7B%22Tid%22:%22{TID}%22,%22Oid%22:%22{OID}%22%7D", "teams", TEAMS_ID),
    (f"https://teams.microsoft.com/l/meetup-join/19%3Aabc%40thread.tacv2/1700000000000?context={context(tid=TID, oid=OID, MessageId='1700000000000')}", SAME, "teams", f"19:abc@thread.tacv2/{TID}/{OID}"),
    (f"https://teams.microsoft.com/l/meetup-join/19%3Aabc%40thread.skype/0?context={context(Tid=TID, Oid=OID, IsBroadcastMeeting=True)}", SAME, "teams", f"19:abc@thread.skype/{TID}/{OID}"),
    (TEAMS.replace("teams.microsoft.com", "gov.teams.microsoft.us"), SAME, "teams", TEAMS_ID),
    (TEAMS.replace("teams.microsoft.com", "dod.teams.microsoft.us"), SAME, "teams", TEAMS_ID),
    (TEAMS.replace("teams.microsoft.com", "gov.teams.microsoft.com"), SAME, "teams", TEAMS_ID),
    (TEAMS.replace("teams.microsoft.com", "teams.cloud.microsoft"), SAME, "teams", TEAMS_ID),
    (TEAMS.replace("teams.microsoft.com", "teams.live.com"), SAME, "teams", TEAMS_ID),
    (TEAMS_SHORT, SAME, "teams", "2345678901234"),
    (f"{TEAMS_SHORT}&anon=true#x", SAME, "teams", "2345678901234"),
    ("https://teams.live.com/meet/9356969621606?p=08ogAW", SAME, "teams", "9356969621606"),
    ("https://teams.microsoft.com/meet/2345678901234", SAME, "teams", "2345678901234"),
    (f"https://teams.microsoft.com/dl/launcher/launcher.html?url={enc('/_#/l/meetup-join/19:meeting_ABC@thread.v2/0?context=' + CONTEXT + '&anon=true')}&type=meetup-join&deeplinkId=1", TEAMS, "teams", TEAMS_ID),
    (f"https://teams.microsoft.com/dl/launcher/launcher.html?url={enc('/_#/l/meetup-join/19:meeting_ABC@thread.v2/0?context=' + CONTEXT, 2)}", TEAMS, "teams", TEAMS_ID),
    (f"https://teams.microsoft.com/dl/launcher/launcher.html?url=/_#/l/meetup-join/19:meeting_ABC@thread.v2/0?context={CONTEXT}&anon=true&type=meetup-join", TEAMS, "teams", TEAMS_ID),
    ("https://teams.live.com/dl/launcher/launcher.html?url=%2F_%23%2Fmeet%2F9356969621606%3Fp%3DabC%26anon%3Dtrue", "https://teams.live.com/meet/9356969621606?p=abC", "teams", "9356969621606"),
    (f"https://teams.microsoft.com/_#/l/meetup-join/19:meeting_ABC@thread.v2/0?context={CONTEXT}", TEAMS, "teams", TEAMS_ID),
    (f"https://teams.microsoft.com/v2/?meetingjoin=true#/l/meetup-join/19:meeting_ABC@thread.v2/0?context={CONTEXT}&anon=true", TEAMS, "teams", TEAMS_ID),
    ("https://teams.microsoft.com/v2/?meetingjoin=true#/meet/2345678901234?p=AbCdEf&anon=true", TEAMS_SHORT, "teams", "2345678901234"),
    (f"https://teams.microsoft.com/light-meetings/launch?agent=web&coords={enc(b64({'conversationId': '19:meeting_ABC@thread.v2', 'tenantId': TID, 'organizerId': OID, 'messageId': '0'}))}&correlationId=1", TEAMS, "teams", TEAMS_ID),
    (f"https://teams.microsoft.com/light-meetings/launch?coords={b64({'conversationId': '19:meeting_ABC@thread.v2', 'tenantId': TID, 'organizerId': OID}).rstrip('=')}%3D", TEAMS, "teams", TEAMS_ID),
    (f"https://teams.live.com/light-meetings/launch?coords={enc(b64({'meetingCode': '9356969621606', 'passcode': 'abC'}))}", "https://teams.live.com/meet/9356969621606?p=abC", "teams", "9356969621606"),
    # Webex
    ("https://acme.webex.com/acme/j.php?MTID=m0123456789abcdef0123456789ABCDEF", SAME, "webex", "m0123456789abcdef0123456789abcdef"),
    ("https://acme.webex.com/acme/k2/j.php?MTID=t0123456789abcdef", SAME, "webex", "t0123456789abcdef"),
    ("https://acme.webex.com/acme/g.php?MTID=e0123456789abcdef", SAME, "webex", "e0123456789abcdef"),
    ("https://acme.webex.com/meet/Ada.Lovelace", SAME, "webex", "acme/ada.lovelace"),
    ("https://acme.webex.com/join/ada@example.org", SAME, "webex", "acme/ada@example.org"),
    ("https://acme.my.webex.com/meet/ada", SAME, "webex", "acme.my/ada"),
    ("https://acme.webex.com/m/0f8fad5b-d9cb-469f-a165-70867728950e", SAME, "webex", "0f8fad5b-d9cb-469f-a165-70867728950e"),
    ("https://acme.webex.com/wbxmjs/joinservice/sites/acme/meeting/download/0f8fad5bd9cb469fa16570867728950e?siteurl=acme&MTID=m0123456789abcdef", SAME, "webex", "m0123456789abcdef"),
    ("https://acme.webex.com/wbxmjs/joinservice/sites/acme/meeting/download/0f8fad5bd9cb469fa16570867728950e", SAME, "webex", "0f8fad5bd9cb469fa16570867728950e"),
    # GoTo
    ("https://global.gotomeeting.com/join/123456789", SAME, "goto", "123456789"),
    ("https://www.gotomeeting.com/join/123456789", SAME, "goto", "123456789"),
    ("https://meet.goto.com/123456789", SAME, "goto", "123456789"),
    ("https://app.gotomeeting.com/?meetingId=123456789", SAME, "goto", "123456789"),
    ("https://gotomeet.me/AdaLovelace", SAME, "goto", "adalovelace"),
    ("https://attendee.gotowebinar.com/join/1234567890123456789/987654321", SAME, "goto", "1234567890123456789"),
    # Whereby
    ("https://whereby.com/ada-room", SAME, "whereby", "ada-room"),
    ("https://acme.whereby.com/Standup?roomKey=eyJ0", SAME, "whereby", "acme/standup"),
    # Jitsi
    ("https://meet.jit.si/DailyStandup", SAME, "jitsi", "meet.jit.si/dailystandup"),
    ("https://meet.jit.si/Daily%20Standup#config.startWithAudioMuted=true", SAME, "jitsi", "meet.jit.si/daily standup"),
    ("https://meet.jit.si/Réunion", "https://meet.jit.si/R%C3%A9union", "jitsi", "meet.jit.si/réunion"),
    ("https://8x8.vc/acme/Standup?jwt=ey", SAME, "jitsi", "8x8.vc/acme/standup"),
    # Visio
    ("https://visio.numerique.gouv.fr/abc-defg-hij", SAME, "visio", "visio.numerique.gouv.fr/abc-defg-hij"),
    ("https://visio.lasuite.coop/point-equipe", SAME, "visio", "visio.lasuite.coop/point-equipe"),
    ("https://visio.suite.anct.gouv.fr/abc-defg-hij", SAME, "visio", "visio.suite.anct.gouv.fr/abc-defg-hij"),
    # percent-encoded as a whole, up to three times
    (enc(ZOOM), ZOOM, "zoom", "81234567890"),
    (enc(ZOOM, 2), ZOOM, "zoom", "81234567890"),
    (enc(ZOOM, 3), ZOOM, "zoom", "81234567890"),
    ("https://zoom.us/j/81234567890%3Fpwd%3DAbC", "https://zoom.us/j/81234567890?pwd=AbC", "zoom", "81234567890"),
    ("https://zoom.us%2Fj%2F81234567890", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    # around the link
    (" zoom.us/j/81234567890 ", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    ("meet.google.com/abc-defg-hij", MEET, "google_meet", "abc-defg-hij"),
    (f"<{TEAMS_SHORT}>", TEAMS_SHORT, "teams", "2345678901234"),
    ("https://zoom.us/j/81234567890.", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    (f"{TEAMS_SHORT}>", TEAMS_SHORT, "teams", "2345678901234"),
    ("https://zo\u200bom.us/j/8123\u00ad4567890", "https://zoom.us/j/81234567890", "zoom", "81234567890"),
    ("https://meet.google.com/abc\u2011defg\u2013hij", MEET, "google_meet", "abc-defg-hij"),
]  # fmt: skip

RECOGNISED_ONLY = [
    ("https://bluejeans.com/123456789/4321", "bluejeans", "123456789"),
    ("https://acme.bluejeans.com/123456789", "bluejeans", "123456789"),
    ("https://chime.aws/1234567890", "chime", "1234567890"),
    ("https://chime.aws/AdaRoom", "chime", "adaroom"),
    ("https://app.chime.aws/meetings/1234567890", "chime", "1234567890"),
    ("https://app.slack.com/huddle/T0123ABCD/C0456EFGH", "slack", "T0123ABCD/C0456EFGH"),
    ("https://v.ringcentral.com/join/123456789?pw=x", "ringcentral", "123456789"),
    ("https://meetings.ringcentral.com/j/1234567890", "ringcentral", "1234567890"),
    ("https://discord.gg/aBcDeF", "discord", "aBcDeF"),
    ("https://facetime.apple.com/join#v=1&p=abc_DEF&k=key", "facetime", "abc_DEF"),
    ("https://meet.livekit.io/rooms/abcd-efgh", "livekit", "abcd-efgh"),
    ("https://app.cal.com/video/aBc123", "cal_video", "aBc123"),
    ("https://acme.daily.co/standup", "daily", "acme/standup"),
    ("https://g.co/meet/ada", "google_meet", "ada"),
    ("https://hangouts.google.com/hangouts/_/example.com/ada", "hangouts", "hangouts/_/example.com/ada"),
    ("https://zoom.us/webinar/WN_abcDEF", "zoom", "WN_abcDEF"),
    ("https://acme.zm.page", "zoom", "acme"),
]

# --- wrappers: (wrapped, inside)

WRAPPED = [
    (safe_link(TEAMS_SHORT), TEAMS_SHORT),
    (safe_link(ZOOM).replace("&", "&amp;"), ZOOM),
    (f"https://nam02.safelinks.protection.office365.us/?url={enc(ZOOM)}&reserved=0", ZOOM),
    (f"https://gbr01.safelinks.protection.outlook.com/ap/t-59584e83/?url={enc(TEAMS)}&data=05", TEAMS),
    (f"https://eur03.safelinks.protection.outlook.com/GetUrlReputation?url={enc(MEET)}", MEET),
    (f"https://statics.teams.cdn.office.net/evergreen-assets/safelinks/1/atp-safelinks.html?url={enc(ZOOM)}&locale=fr-fr", ZOOM),
    (f"https://www.google.com/url?q={enc(ZOOM)}&sa=D&usg=x", ZOOM),
    (f"https://www.google.co.uk/url?sa=t&url={enc(MEET)}", MEET),
    (f"https://www.google.fr/url?q={MEET}", MEET),
    (f"https://urldefense.proofpoint.com/v1/url?u={enc('https://zoom.us/w/81234567890?pwd=a&#38;tk=b')}&k=x", "https://zoom.us/w/81234567890?pwd=a&tk=b"),
    ("https://urldefense.proofpoint.com/v2/url?u=https-3A__zoom.us_j_81234567890-3Fpwd-3DAbC123&d=DwMF&c=x", "https://zoom.us/j/81234567890?pwd=AbC123"),
    ("https://urldefense.proofpoint.com/v2/url?u=https-3A__zoom.us_w_81234567890-3Fpwd-3Da-26amp-3Btk-3Db&c=x", "https://zoom.us/w/81234567890?pwd=a&tk=b"),
    ("https://urldefense.com/v3/__https://zoom.us/j/81234567890?pwd=AbC__;!!AbC!xyz$", "https://zoom.us/j/81234567890?pwd=AbC"),
    ("https://urldefense.us/v3/__https:/zoom.us/j/81234567890?pwd=AbC__;!!AbC!xyz$", "https://zoom.us/j/81234567890?pwd=AbC"),
    ("https://urldefense.com/v3/__https://meet.jit.si/a*b__;Kw!!AbC!xyz$", "https://meet.jit.si/a+b"),
    (f"https://l.facebook.com/l.php?u={enc(ZOOM)}&h=AT0", ZOOM),
    (f"https://l.messenger.com/l.php?u={enc(ZOOM)}&h=AT0", ZOOM),
    (f"https://slack-redir.net/link?url={enc(ZOOM)}", ZOOM),
    (f"https://linkprotect.cudasvc.com/url?a={enc(ZOOM)}&c=E,1,x", ZOOM),
    (safe_link(f"https://www.google.com/url?q={enc(ZOOM)}"), ZOOM),
    (safe_link("https://teams.microsoft.com/v2/?meetingjoin=true#/meet/2345678901234?p=AbCdEf"), TEAMS_SHORT),
    (safe_link(safe_link(safe_link(safe_link(safe_link("https://meet.jit.si/deep"))))), "https://meet.jit.si/deep"),
    (enc(safe_link(ZOOM)), ZOOM),
    (safe_link("https://zoom.us/w/81234567890?tk=a&amp;pwd=b"), "https://zoom.us/w/81234567890?tk=a&pwd=b"),
]  # fmt: skip

# Wrapped links that are about the unwrapping alone, and one for each way of counting R.
UNWRAPPED = [
    ("https://urldefense.com/v3/__https://google.com:443/search?q=a*test&gs=ps__;Kw!-612Flbf0JvQ3kNJkRi5Jg!Ue6t$", "https://google.com:443/search?q=a+test&gs=ps"),
    ("https://urldefense.com/v3/__https://example.test/a*b*c__;IyU!!AbC!xyz$", "https://example.test/a#b%c"),
    ("https://urldefense.com/v3/__https:/example.test/a**Ab__;JSM!!AbC!xyz$", "https://example.test/a%#b"),
    ("https://urldefense.com/v3/__https://example.test/a#x*b__;Kw!!AbC!xyz$", "https://example.test/a#x+b"),
    # "é+" is three bytes and two characters
    ("https://urldefense.com/v3/__https://example.test/**Ax*__;w6kr!!AbC!xyz$", "https://example.test/éx+"),
    ("https://urldefense.com/v3/__https://example.test/**A__;w6kr!!AbC!xyz$", "https://example.test/é+"),
    ("https://urldefense.com/v3/__https://example.test/**B__;Kys!!AbC!xyz$", ""),
]  # fmt: skip

# --- refused: (written, a part of the sentence that says why)

REFUSED = [
    # look-alikes
    ("https://teams.microsoft.com.evil.example/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context=" + CONTEXT, "known meeting service"),
    ("https://evil.example/?next=https://zoom.us/j/1234567890", "known meeting service"),
    ("https://zoom.us@evil.example/j/1234567890", "user name"),
    ("https://evil.example@zoom.us/j/1234567890", "user name"),
    ("https://user:word@zoom.us/j/1234567890", "user name"),
    ("https://notzoom.us/j/1234567890", "known meeting service"),
    ("https://zoom.us.evil.example/j/1234567890", "known meeting service"),
    ("https://zoom-us.example/j/1234567890", "known meeting service"),
    ("https://evil.example/zoom.us/j/1234567890", "known meeting service"),
    ("https://evil.example#.zoom.us/j/1234567890", "known meeting service"),
    ("https://evil.example%23.zoom.us/j/1234567890", "percent-encoded"),
    ("https://zoom.us%40evil.example/j/1234567890", "percent-encoded"),
    ("https://zoom.us%2Fj%2F1234567890%3F@evil.example/", "user name"),
    ("https://evil.example\\@zoom.us/j/1234567890", "user name or a backslash"),
    ("https://evil.example\\.zoom.us/j/1234567890", "backslash"),
    ("https://zооm.us/j/1234567890", "xn--"),  # Cyrillic о
    ("https://ｚｏｏｍ.us/j/1234567890", "known meeting service"),
    ("https://app.slac\u212a.com/huddle/T1/C1", "xn--"),  # the Kelvin sign, a k in lower case
    ("https://zoom。us/j/1234567890", "known meeting service"),
    ("https://www.google.evil.example/url?q=" + enc(ZOOM), "known meeting service"),
    ("https://evil.safelinks.protection.outlook.com.evil.example/?url=" + enc(ZOOM), "known meeting service"),
    ("https://meet.google.com.evil.example/abc-defg-hij", "known meeting service"),
    # ports, schemes, form
    ("https://zoom.us:8443/j/1234567890", "port"),
    ("http://zoom.us:80/j/1234567890", "port"),
    ("https://zoom.us:443x/j/1234567890", "port"),
    ("ftp://zoom.us/j/1234567890", "http"),
    ("javascript://zoom.us/j/1234567890", "http"),
    ("zoommtg://meet.google.com/abc-defg-hij", "Zoom application"),
    ("msteams://teams.microsoft.com/meet/2345678901234", "http"),
    ("https://zoom..us/j/1234567890", "valid name"),
    ("https:///j/1234567890", "valid name"),
    ("https://" + "a" * 250 + ".zoom.us/j/1234567890", "valid name"),
    ("https://zoom.us/j/1234567890?x=" + "y" * 4096, "longer than 4096"),
    ("https://zoom.us/j/1234567890?zak=" + "y" * 4096, "longer than 4096"),
    ("https://meet.jit.si/Room?x=" + "é" * 3000, "longer than 4096"),
    (f"{ZOOM}{ZOOM}", "more than one link"),
    (enc(ZOOM, 4), "http"),
    # Zoom pages
    ("https://zoom.us/meeting/register/tJabc", "registration"),
    ("https://zoom.us/webinar/register/WN_abc", "registration"),
    ("https://us02web.zoom.us/u/kbXyZ", "dial-in"),
    ("https://zoom.us/zoomconference?m=abc", "dial-in"),
    ("https://zoom.us/j/12345678", "does not join"),
    ("https://zoom.us/j/123456789012", "does not join"),
    ("https://zoom.us/j/٣٣٣٣٣٣٣٣٣٣", "does not join"),
    ("https://zoom.us/rec/share/abc", "does not join"),
    ("https://zoom.us/", "does not join"),
    ("https://zoom.us/join?confno=12", "does not join"),
    ("https://zm.page", "does not join"),
    # Google pages
    ("https://meet.google.com/", "does not join"),
    ("https://meet.google.com/new", "does not join"),
    ("https://meet.google.com/abc-defg-hijk", "does not join"),
    ("https://stream.meet.google.com/stream/0f8fad5b-d9cb-469f-a165-70867728950e", "live stream"),
    ("https://tel.meet/abc-defg-hij?pin=1", "dial-in"),
    ("https://hangouts.google.com/", "does not join"),
    ("https://g.co/kgs/abc", "does not join"),
    # Teams pages
    ("https://aka.ms/JoinTeamsMeeting", "known meeting service"),
    ("https://dialin.teams.microsoft.com/abc?id=1", "dial-in"),
    ("https://teams.microsoft.com/meetingOptions/?organizerId=1&tenantId=2", "does not join"),
    ("https://teams.microsoft.com/l/channel/19%3Aabc%40thread.tacv2/General", "does not join"),
    ("https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0", "Tid and Oid"),
    (f"https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context={context(Tid=TID)}", "Tid and Oid"),
    (f"https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context={context(Tid=TID, Oid='../x')}", "Tid and Oid"),
    (f"https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context={context(Tid=TID, Oid=1)}", "Tid and Oid"),
    ("https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context=xyz", "Tid and Oid"),
    ("https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context=" + "[" * 3000, "Tid and Oid"),
    ("https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context=%5B%5D", "Tid and Oid"),
    (f"https://teams.microsoft.com/l/meetup-join/nonsense/0?context={CONTEXT}", "does not join"),
    (f"https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/%2E%2E?context={CONTEXT}", "does not join"),
    ("https://teams.microsoft.com/meet/123?p=x", "does not join"),
    ("https://teams.live.com/light-meetings/launch", "Tid and Oid"),
    ("https://teams.live.com/light-meetings/launch?coords=!!!", "Tid and Oid"),
    ("https://teams.live.com/light-meetings/launch?coords=%FF%FF", "does not join"),
    (f"https://teams.live.com/light-meetings/launch?coords={enc(b64({'other': 'x'}))}", "Tid and Oid"),
    ("https://teams.live.com/dl/launcher/launcher.html?url=/other", "does not join"),
    ("https://teams.live.com/dl/launcher/launcher.html?url=%2F_%23%2Fother%2Fpath", "does not join"),
    # others' pages
    ("https://acme.webex.com/weblink/register/r0123456789abcdef", "registration"),
    ("https://acme.webex.com/acme/globalcallin.php?serviceType=MC", "dial-in"),
    ("https://acme.webex.com/acme/j.php", "does not join"),
    ("https://www.webex.com/meet/pricing", "does not join"),
    ("https://help.webex.com/join/abcdef", "does not join"),
    ("https://register.gotowebinar.com/register/1234567890123456789", "registration"),
    ("https://www.gotomeeting.com/pricing", "does not join"),
    ("https://meet.goto.com/install", "does not join"),
    ("https://gotomeet.me/", "does not join"),
    ("https://whereby.com/information", "does not join"),
    ("https://whereby.com/blog", "does not join"),
    ("https://whereby.com/user", "does not join"),
    ("https://www.whereby.com/room", "does not join"),
    ("https://meet.jit.si/", "does not join"),
    ("https://meet.jit.si/static/close.html", "does not join"),
    ("https://meet.jit.si/config.js", "does not join"),
    ("https://meet.jit.si/..", "does not join"),
    ("https://meet.jit.si/a%00b", "does not join"),
    ("https://8x8.vc/acme", "does not join"),
    ("https://visio.numerique.gouv.fr/", "does not join"),
    ("https://visio.numerique.gouv.fr/mentions-legales", "does not join"),
    ("https://visio.numerique.gouv.fr/sdk/create-button", "does not join"),
    ("https://visio.numerique.gouv.fr/favicon.ico", "does not join"),
    ("https://bluejeans.com/downloads", "does not join"),
    ("https://chime.aws/dialinnumbers/", "does not join"),
    ("https://app.slack.com/client/T1/C1", "does not join"),
    ("https://v.ringcentral.com/login", "does not join"),
    ("https://discord.gg/", "does not join"),
    ("https://facetime.apple.com/join", "does not join"),
    ("https://meet.livekit.io/", "does not join"),
    ("https://app.cal.com/ada", "does not join"),
    ("https://docs.daily.co/guides", "does not join"),
    # wrappers
    ("https://eur.mimecast.com/s/AbC?domain=zoom.us", "Mimecast"),
    ("https://eur03.safelinks.protection.outlook.com/?data=1", "no link to unwrap"),
    (f"https://eur03.safelinks.protection.outlook.com/other?url={enc(ZOOM)}", "no link to unwrap"),
    (f"https://statics.teams.cdn.office.net/other.html?url={enc(ZOOM)}", "no link to unwrap"),
    (f"https://www.google.com/search?q={enc(ZOOM)}", "no link to unwrap"),
    (f"https://l.facebook.com/flx/?u={enc(ZOOM)}", "no link to unwrap"),
    (f"https://slack-redir.net/other?url={enc(ZOOM)}", "no link to unwrap"),
    (f"https://linkprotect.cudasvc.com/other?a={enc(ZOOM)}", "no link to unwrap"),
    ("https://urldefense.com/v4/x", "no link to unwrap"),
    ("https://urldefense.com/v3/__https://zoom.us/j/81234567890", "no link to unwrap"),
    ("https://urldefense.com/v3/__https://zoom.us/j/*__;!!A!B$", "no link to unwrap"),
    ("https://urldefense.com/v3/__https://zoom.us/j/*__;w!!A!B$", "no link to unwrap"),
    (safe_link("https://evil.example/j/1234567890"), "known meeting service"),
    (safe_link("https://zoom.us@evil.example/j/1234567890"), "user name"),
    (safe_link("javascript:alert(1)"), "http"),
    (safe_link(safe_link(safe_link(safe_link(safe_link(safe_link("https://meet.jit.si/deep")))))), "more than 5 times"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "url", "platform", "meeting_id"), JOINED)
def test_a_join_link_is_recognised(written: str, url: str | None, platform: str, meeting_id: str) -> None:
    link = parse_meeting_url(written)
    assert link is not None
    assert (link.platform, link.meeting_id, link.is_supported) == (platform, meeting_id, True)
    if "%2540" not in written:
        assert link.url == (url or written)
    assert parse_meeting_url(link.url) == link, "what is handed out must be readable again"


@pytest.mark.parametrize(("url", "platform", "meeting_id"), RECOGNISED_ONLY)
def test_a_link_of_other_services_is_recognised_but_not_supported(
    url: str, platform: str, meeting_id: str
) -> None:
    assert parse_meeting_url(url) == MeetingLink(url, platform, meeting_id, is_supported=False)


@pytest.mark.parametrize(("wrapped", "inside"), WRAPPED)
def test_a_wrapper_is_taken_off(wrapped: str, inside: str) -> None:
    link = find_meeting_link(description=wrapped)
    assert link == parse_meeting_url(inside)
    assert link is not None
    assert link.url == inside


@pytest.mark.parametrize(("wrapped", "inside"), UNWRAPPED)
def test_url_defense_v3_is_decoded_as_in_the_vectors(wrapped: str, inside: str) -> None:
    parts = split_url(wrapped)
    assert isinstance(parts, Url)
    outcome = unwrap(parts)
    assert outcome == Inner(inside) if inside else not isinstance(outcome, Inner)


@pytest.mark.parametrize(("written", "why"), REFUSED)
def test_what_is_no_meeting_link_is_refused_with_a_reason(written: str, why: str) -> None:
    assert parse_meeting_url(written) is None
    assert find_meeting_link(conference=[written], location=written, title=written) is None
    candidate = extract._look_at(written, extract.DEFAULT_HOSTS)
    assert candidate.link is None
    assert candidate.reason is not None
    assert why in candidate.reason
    assert candidate.reason.endswith(".")


@pytest.mark.parametrize(
    ("url", "platform"),
    [
        ("https://zoom.us/j/5551112222", "zoom"),
        ("https://acme.zoom.us/j/12345", "zoom"),
        ("https://meet.google.com/abc-def-ghi", "google_meet"),
        ("https://teams.live.com/meet/123456789", "teams"),
        ("https://acme.webex.com/anything", "webex"),
        (
            f"https://eur01.safelinks.protection.outlook.com/?url={quote('https://zoom.us/j/1', safe='')}&data=x",
            "zoom",
        ),
        ("https://zoom.us.example.com/j/5551112222", None),
        ("https://user@zoom.us/j/5551112222", None),
        ("https://example.com/?url=https://zoom.us/j/5551112222", None),
        ("nothing", None),
    ],
)
def test_the_platform_of_a_link_is_told_by_its_host(url: str, platform: str | None) -> None:
    assert find_platform(url) == platform


def test_every_recogniser_has_its_platforms_name() -> None:
    recognisers = {*platforms._BY_HOST.values(), *platforms._BY_DOMAIN.values()}
    without_meeting = {platforms._dial_in, platforms._meet_stream}
    assert recognisers | {platforms._visio, platforms._jitsi} == platforms._NAMES.keys() | without_meeting


def test_one_meeting_written_in_several_ways_has_one_key() -> None:
    ways = [
        "https://zoom.us/j/81234567890?pwd=a",
        "https://us02web.zoom.us/j/81234567890",
        "https://acme.zoom.us/wc/81234567890/join",
        "zoommtg://zoom.us/join?confno=81234567890",
        safe_link("https://zoom.us/s/81234567890"),
    ]
    links = [parse_meeting_url(way) for way in ways]
    assert {(link.platform, link.meeting_id) for link in links if link} == {("zoom", "81234567890")}
    assert None not in links


# --- hosts that an operator configures


def test_configured_hosts_are_recognised_in_any_spelling() -> None:
    hosts = MeetingHosts(
        visio=frozenset({"Visio.Example.org ", "réunion.example.fr"}),
        jitsi=frozenset({"jitsi.example.org", "", " "}),
    )
    found = {
        url: parse_meeting_url(url, hosts=hosts)
        for url in (
            "https://visio.example.org/my-own-room",
            "https://réunion.example.fr/abc-defg-hij",
            "https://xn--runion-bva.example.fr/abc-defg-hij",
            "https://jitsi.example.org/Room",
        )
    }
    assert [link.platform if link else None for link in found.values()] == [
        "visio",
        "visio",
        "visio",
        "jitsi",
    ]
    ids = [link.meeting_id for link in found.values() if link]
    assert ids[1] == ids[2] == "xn--runion-bva.example.fr/abc-defg-hij"
    assert (
        find_meeting_link(location="visio.example.org/my-own-room", hosts=hosts)
        == found["https://visio.example.org/my-own-room"]
    )
    assert parse_meeting_url("https://visio.numerique.gouv.fr/abc-defg-hij", hosts=hosts) is None
    assert parse_meeting_url("https://meet.jit.si/Room", hosts=hosts) is None
    assert parse_meeting_url("https://sub.jitsi.example.org/Room", hosts=hosts) is None
    assert parse_meeting_url(ZOOM, hosts=hosts) is not None


@pytest.mark.parametrize("name", ["https://visio.example.org", "visio.example.org:8443", "*.example.org"])
def test_a_configured_host_that_is_no_host_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        MeetingHosts(visio=frozenset({name}))


# --- texts: (text, the link's url)

TEXTS = [
    (f"Join at {ZOOM}.", ZOOM),
    (f"Join ({ZOOM}), please!", ZOOM),
    (f"Join:{MEET}; see you", MEET),
    (f"Microsoft Teams<{TEAMS_SHORT}>", TEAMS_SHORT),
    (f"Join the meeting now<{safe_link(TEAMS_SHORT)}>", TEAMS_SHORT),
    (f"[Join]({ZOOM})", ZOOM),
    (f"[{ZOOM}]({ZOOM})", ZOOM),
    (f"**{MEET}**", MEET),
    (f"<{ZOOM}|Join on Zoom>", ZOOM),
    (f"会議：{MEET}。よろしく", MEET),
    (f"« {MEET} »", MEET),
    (f"Rejoindre\u00a0: {MEET}\u00a0!", MEET),
    (f"{ZOOM}\\nPasscode: 1", ZOOM),
    ("https://zoom.us/j/81234567890\\?pwd\\=AbC", "https://zoom.us/j/81234567890?pwd=AbC"),
    (f"{ZOOM},https://zoom.us/j/99999999999", ZOOM),
    ("https://zoom.us/j/81234567890;Room 4", "https://zoom.us/j/81234567890"),
    ("Https://zoom.us/j/81234567890", "https://zoom.us/j/81234567890"),
    ("HTTPS://ZOOM.US/j/81234567890", "https://zoom.us/j/81234567890"),
    ("Open zoommtg://zoom.us/join?confno=81234567890 now", "https://zoom.us/j/81234567890"),
    (f"Copied: {enc(ZOOM)}", ZOOM),
    (f"Copied: {enc(ZOOM, 3)}", ZOOM),
    # HTML
    (f'<a href="{ZOOM}">Join</a>', ZOOM),
    (f"<A HREF='{ZOOM}'>Join</A>", ZOOM),
    (f'<a class="x" href = "{ZOOM}" target=_blank>Join</a>', ZOOM),
    (f"<a href={MEET}>Join</a>", MEET),
    (f'<a href="{ZOOM}">https://zoom.us/j/81234567890</a>', ZOOM),
    (f'<p>https://zoom.us/j/99999999999</p><a href="{ZOOM}">Join</a>', ZOOM),
    (f'<a href="https://evil.example/">{ZOOM}</a>', ZOOM),
    ('<a href="https://zoom.us/w/81234567890?tk=a&amp;pwd=b">Join</a>', "https://zoom.us/w/81234567890?tk=a&pwd=b"),
    ('<a href="https&#58;&#x2F;&#x2F;zoom.us/j/81234567890">Join</a>', "https://zoom.us/j/81234567890"),
    ('<a href="https://zoom.us/w/81234567890?tk=a&amp;amp;pwd=b.">Join</a>', "https://zoom.us/w/81234567890?tk=a&pwd=b."),
    (f"&lt;a href=&quot;{ZOOM}&quot;&gt;Join&lt;/a&gt;", ZOOM),
    (f"{ZOOM}&nbsp;now", ZOOM),
    (f"{ZOOM}<br/>Passcode: 1", ZOOM),
    ("https://zoom.us/j/8123<wbr>4567890", "https://zoom.us/j/81234567890"),
    ("https://zoom.us/j/8123&shy;456&#8203;7890", "https://zoom.us/j/81234567890"),
    (f'<a href="{safe_link(TEAMS).replace("&", "&amp;")}" originalsrc="{TEAMS}">Join</a>', TEAMS),
    # no entity of HTML, although `&reg` could be read as one
    ("https://zoom.us/w/81234567890?tk=a&region=eu&copy=1", "https://zoom.us/w/81234567890?tk=a&region=eu&copy=1"),
    # quoted-printable
    ("https://zoom.us/j/8123=\r\n4567890", "https://zoom.us/j/81234567890"),
    ("https://zoom.us/j/8123=\n456=\n7890?p=\r\nwd=3DAbC now", "https://zoom.us/j/81234567890?pwd=AbC"),
    ("https://zoom.us/j/81234567890?pwd=QWxh==\nMeeting ID: 1", "https://zoom.us/j/81234567890?pwd=QWxh=="),
    ("https://zoom.us/j/81234567890?pwd=QWxh=\r\nMeeting ID: 1", "https://zoom.us/j/81234567890?pwd=QWxh="),
    ("https://zoom.us/j/81234567890?x= now", "https://zoom.us/j/81234567890?x="),
    (f"https://example.org/?x=\n{ZOOM}", ZOOM),
    # blocks that calendars write
    ("-::~:~::~:~:~::~:~::-\nRejoindre la visio : https://visio.numerique.gouv.fr/abc-defg-hij\n-::~:~::-", "https://visio.numerique.gouv.fr/abc-defg-hij"),
    ("Join: https://acme.zoom.us/j/81234567890?pwd=x\nNumbers: https://acme.zoom.us/u/abc", "https://acme.zoom.us/j/81234567890?pwd=x"),
    (f"Need help? https://aka.ms/JoinTeamsMeeting\nDial in: https://dialin.teams.microsoft.com/1?id=2\nOptions: https://teams.microsoft.com/meetingOptions/?x=1\nJoin: {TEAMS}", TEAMS),
]  # fmt: skip


@pytest.mark.parametrize(("text", "url"), TEXTS)
def test_the_link_is_found_in_a_text(text: str, url: str) -> None:
    for found in (find_meeting_link(description=text), find_meeting_link(location=text)):
        assert found is not None
        assert found.url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No link here, just 50% more talk & a few <b>tags</b>; mail ada@zoom.us",
        "zoom.us/j/81234567890",  # without scheme only where a link is expected
        "https://",
        "http://%",
        "href=",
        "&#" + "9" * 5000 + ";://",
        "&#x110000;&#xD800;://",
        "mailto:ada@example.org tel:+15550100 sip:81234567890@zoomcrc.com",
    ],
)
def test_a_text_without_a_meeting_link_has_none(text: str) -> None:
    assert find_meeting_link(description=text, title=text) is None


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("zoom.us/j/81234567890?pwd=x", "https://zoom.us/j/81234567890?pwd=x"),
        ("Room 4, acme.zoom.us/j/81234567890", "https://acme.zoom.us/j/81234567890"),
        ("Zoom (zoom.us/j/81234567890)", "https://zoom.us/j/81234567890"),
        ("Lien de la réunion : visio.numerique.gouv.fr/abc-defg-hij.", "https://visio.numerique.gouv.fr/abc-defg-hij"),
        ("Rejoindre la visioconférence : https://visio.lasuite.coop/abc-defg-hij", "https://visio.lasuite.coop/abc-defg-hij"),
        ("Meet.Google.com/abc-defg-hij", MEET),
        ("Microsoft Teams Meeting; teams.microsoft.com/meet/2345678901234?p=x", "https://teams.microsoft.com/meet/2345678901234?p=x"),
    ],
)  # fmt: skip
def test_a_location_may_leave_out_the_scheme(location: str, url: str) -> None:
    found = find_meeting_link(location=location)
    assert found is not None
    assert found.url == url
    assert find_meeting_link(conference=[location]) == found


@pytest.mark.parametrize(
    "location",
    ["evil.example/?next=zoom.us/j/81234567890", "ada@zoom.us/j/81234567890", "notzoom.us/j/81234567890", "zoom.us", "1/2.5", "/j/81234567890"],
)  # fmt: skip
def test_a_location_that_only_looks_like_a_link_has_none(location: str) -> None:
    assert find_meeting_link(location=location) is None


# --- which of several links


def test_conference_goes_before_location_before_description_before_title() -> None:
    sources: dict[str, Any] = {
        "conference": ["https://meet.jit.si/one"],
        "location": "https://meet.jit.si/two",
        "description": "https://meet.jit.si/three",
        "title": "https://meet.jit.si/four",
    }
    order = []
    while found := find_meeting_link(**sources):
        order.append(found.url.rpartition("/")[2])
        del sources[next(iter(sources))]
    assert order == ["one", "two", "three", "four"]


def test_a_supported_link_goes_before_a_recognised_one_of_an_earlier_field() -> None:
    found = find_meeting_link(
        conference=["https://bluejeans.com/123456789"], location="https://discord.gg/abc", title=ZOOM
    )
    assert found is not None
    assert found.url == ZOOM


def test_a_recognised_link_is_better_than_none_and_the_first_counts() -> None:
    found = find_meeting_link(
        conference=["tel:+15550100", "https://bluejeans.com/123456789"], description="https://discord.gg/abc"
    )
    assert found is not None
    assert (found.platform, found.is_supported) == ("bluejeans", False)


@pytest.mark.parametrize(
    ("structured", "platform"),
    [
        ({"conference": ["teamsForBusiness"]}, "teams"),
        ({"conference": ["hangoutsMeet"]}, "google_meet"),
        ({"conference": ["Zoom Meeting"]}, "zoom"),
        ({"location": "Microsoft Teams Meeting"}, "teams"),
        ({"location": "Visioconférence Teams"}, "teams"),
        ({"location": "https://teams.microsoft.com/meetingOptions/?x=1"}, "teams"),
        ({"conference": ["hangoutsMeet"], "location": "Zoom"}, "google_meet"),
        ({"location": "Room 4"}, "webex"),
        ({}, "webex"),
        ({"location": "GoTo Meeting"}, "webex"),
        ({"conference": ["https://bluejeans.com/123456789"]}, "webex"),
    ],
)
def test_in_a_text_the_service_that_the_structured_fields_name_goes_first(
    structured: dict[str, Any], platform: str
) -> None:
    text = f"https://acme.webex.com/meet/ada (my room), {ZOOM}, {MEET} or {TEAMS_SHORT}"
    found = find_meeting_link(**structured, description=text)
    assert found is not None
    assert found.platform == platform


@pytest.mark.parametrize(
    ("url", "platform"),
    [
        ("https://teams.microsoft.com/meet/234567890?p=x", "teams"),
        ("https://teams.microsoft.com/l/meetup-join/a/b?c=1#d", "teams"),
        ("https://meet.google.com/abc-def-hij", "google_meet"),
        ("https://zoom.us/j/12345", "zoom"),
        ("https://us02web.zoom.us/j/123456789012?pwd=x", "zoom"),
        ("https://acme.webex.com/acme/some/new/form?id=1", "webex"),
    ],
)
def test_a_providers_own_join_url_counts_by_its_host(url: str, platform: str) -> None:
    found = find_meeting_link(join_urls=["", "no link", url], location=ZOOM)
    assert found is not None
    assert (found.url, found.platform, found.is_supported) == (url, platform, True)
    assert find_meeting_link(conference=[url], location=url, description=url, title=url) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://zoom.us/",
        "https://zoom.us/meeting/register/abc",
        "https://zoom.us/u/abc",
        "https://zoom.us.evil.example/j/12345",
        "https://evil.example/j/123456789",
        "https://ada@zoom.us/j/12345",
        "https://zoom.us:99/j/12345",
        "https://tel.meet/abc-def-hij",
        "https://stream.meet.google.com/stream/x",
        "zoommtg://zoom.us/12345",
        "javascript:alert(1)",
        "see https://zoom.us/j/12345 here",
        "https://zoom.us/j/" + "1" * 5000,
        "\ud800",
        # Pages of the services that send on to wherever they are told.
        "https://meet.google.com/linkredirect?dest=https://evil.example/j/1",
        "https://meet.google.com/linkredirect?dest=https%3A%2F%2Fevil.example",
        "https://zoom.us/signin?next=%252F%252Fevil.example",
        "https://acme.webex.com/redirect#/to=//evil.example",
        "https://zoom.us/open/https:%5C%5Cevil.example",
        "https://g.co/abc",
    ],
)
def test_a_join_url_on_another_host_or_to_no_meeting_does_not_count(url: str) -> None:
    assert find_meeting_link(join_urls=[url]) is None


def test_a_join_url_gives_no_host_key_away() -> None:
    found = find_meeting_link(join_urls=["https://zoom.us/j/12345?zak=key&pwd=p&uname=Ada"])
    assert found is not None
    assert found.url == "https://zoom.us/j/12345?pwd=p"


WEBEX_ROOM = "https://acme.webex.com/meet/ada"
RUNNER = MeetingHosts(preferred=frozenset({"zoom", "google_meet", "teams"}))


@pytest.mark.parametrize(
    ("texts", "url"),
    [
        ({"location": WEBEX_ROOM, "description": f"or {ZOOM}"}, ZOOM),
        ({"description": f"{WEBEX_ROOM} or {ZOOM}"}, ZOOM),
        ({"join_urls": [WEBEX_ROOM], "location": MEET}, MEET),
        ({"location": "Webex", "description": f"{WEBEX_ROOM} or {ZOOM} or {MEET}"}, ZOOM),
        ({"location": "Google Meet", "description": f"{WEBEX_ROOM} or {ZOOM} or {MEET}"}, MEET),
        ({"location": WEBEX_ROOM, "description": "https://discord.gg/abc"}, WEBEX_ROOM),
        ({"location": WEBEX_ROOM, "description": "https://whereby.com/ada"}, WEBEX_ROOM),
        ({"location": ZOOM, "description": MEET}, ZOOM),
        ({"location": "https://discord.gg/abc", "description": WEBEX_ROOM}, WEBEX_ROOM),
    ],
)
def test_of_several_links_one_that_the_runner_can_join_goes_first(texts: Any, url: str) -> None:
    found = find_meeting_link(**texts, hosts=RUNNER)
    assert found is not None
    assert found.url == url


def test_without_a_runner_to_prefer_the_first_link_counts() -> None:
    found = find_meeting_link(location=WEBEX_ROOM, description=ZOOM)
    assert found is not None
    assert found.url == WEBEX_ROOM


def test_in_a_text_any_supported_link_goes_before_a_recognised_one() -> None:
    found = find_meeting_link(location="Webex", description=f"https://discord.gg/abc or {ZOOM}")
    assert found is not None
    assert found.url == ZOOM


@pytest.mark.parametrize("text", ["", " ", "Room 4", f"{ZOOM} Passcode: 1", f"{ZOOM} {ZOOM}"])
def test_what_is_not_one_link_is_not_parsed_as_one(text: str) -> None:
    assert parse_meeting_url(text) is None


# --- the debugging view


def test_every_link_of_a_text_is_reported_with_what_became_of_it() -> None:
    text = (
        f'<a href="{safe_link(ZOOM).replace("&", "&amp;")}">Join</a> https://example.org/agenda'
        f" {safe_link('https://example.org/inside')} https://discord.gg/abc https://example.org/agenda"
    )
    seen = find_all_links(text)
    assert [candidate.url for candidate in seen] == [
        safe_link(ZOOM),
        "https://example.org/agenda",
        safe_link("https://example.org/inside"),
        "https://discord.gg/abc",
    ]
    assert [candidate.unwrapped_url for candidate in seen] == [ZOOM, None, "https://example.org/inside", None]
    assert [candidate.link.platform if candidate.link else None for candidate in seen] == [
        "zoom",
        None,
        None,
        "discord",
    ]
    assert seen[0].reason is None
    assert seen[1].reason == seen[2].reason == "example.org is not the host of a known meeting service."


def test_links_without_a_scheme_are_reported_on_request() -> None:
    assert find_all_links("see zoom.us/j/81234567890") == []
    (candidate,) = find_all_links("see zoom.us/j/81234567890", scheme_less=True)
    assert candidate.link is not None


def test_reasons_hold_no_secret() -> None:
    secret = "S3cr3tW0rd"
    for written, _ in [*REFUSED, *((url, None) for url, *_ in JOINED)]:
        for broken in (
            f"{written}{'&' if '?' in written else '?'}pwd={secret}",
            f"https://zoom.us:99/j/81234567890?pwd={secret}&x={enc(written)}",
            f"https://host{secret}:{secret}@zoom.us/j/81234567890",
            safe_link(f"https://zoom.us/none?pwd={secret}"),
        ):
            for candidate in find_all_links(broken):
                assert secret not in (candidate.reason or "")


# --- secrets in logs


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://zoom.us/j/81234567890?pwd=AbC.1#success", "https://zoom.us/j/81234567890?pwd=***#success"),
        ("https://zoom.us/w/81234567890?tk=a.b-c&pwd=x&zak=y&omn=1", "https://zoom.us/w/81234567890?tk=***&pwd=***&zak=***&omn=1"),
        (f"Join {TEAMS_SHORT} now", "Join https://teams.microsoft.com/meet/2345678901234?p=*** now"),
        ("https://acme.whereby.com/room?roomKey=ey&x=1", "https://acme.whereby.com/room?roomKey=***&x=1"),
        ("https://8x8.vc/a/b?jwt=ey.J", "https://8x8.vc/a/b?jwt=***"),
        ("https://meet.jit.si/b#jwt=ey.J", "https://meet.jit.si/b#jwt=***"),
        ("https://zoom.us/j/1?PWD=AbC", "https://zoom.us/j/1?PWD=***"),
        ("<a href='https://zoom.us/j/1?a=b&amp;pwd=AbC'>", "<a href='https://zoom.us/j/1?a=b&amp;pwd=***>"),
        ("pwd=AbC", "pwd=***"),
        ("https://bluejeans.com/123456789/4321?x=1", "https://bluejeans.com/123456789/***?x=1"),
        ("https://example.org/?help=1&top=2&shop=3", "https://example.org/?help=1&top=2&shop=3"),
        (MEET, MEET),
    ],
)  # fmt: skip
def test_secrets_are_masked_and_nothing_else_is(text: str, masked: str) -> None:
    assert redact(text) == masked
    assert redact(masked) == masked


@pytest.mark.parametrize("name", ["pwd", "p", "tk", "zak", "jwt", "roomKey"])
def test_secrets_are_masked_inside_wrappers(name: str) -> None:
    secret = "S3cr3tW0rd"
    url = f"https://zoom.us/j/81234567890?a=b&{name}={secret}"
    v2 = enc(url).replace("%", "-").replace("-2F", "_")
    for wrapped in (
        url,
        enc(url),
        enc(url, 2),
        enc(url, 3),
        safe_link(url),
        safe_link(safe_link(url)),
        f"https://urldefense.proofpoint.com/v2/url?u={v2}&d=x",
        f"https://urldefense.com/v3/__{url}__;!!A!B$",
        f"https://www.google.com/url?q={enc(url)}",
    ):
        assert secret not in redact(wrapped)


# --- limits


def test_what_follows_the_first_100_000_characters_is_not_looked_at() -> None:
    assert find_meeting_link(description="x " * 50_000 + ZOOM) is None
    assert find_meeting_link(description="x " * 49_000 + ZOOM) is not None


def test_a_link_that_the_cap_cuts_in_two_is_not_taken() -> None:
    url = "https://zoom.us/j/12345678901?pwd=AbCdEfG"
    for written in (url, url.removeprefix("https://")):
        for missing in (1, 10, 13, 20):
            text = " " * (extract.MAX_TEXT_LENGTH - len(written) + missing)
            assert find_meeting_link(location=text + written) is None
            assert find_meeting_link(location=text[missing:] + written) is not None
    text = " " * (extract.MAX_TEXT_LENGTH - 30)
    assert find_meeting_link(description=f'{text}href="{url}"') is None


# --- any text at all

PIECES = st.sampled_from(
    [
        "https://", "http://", "HTTPS://", "zoommtg://", "https%3A%2F%2F", "https%253A%252F%252F", "zoom.us", "us02web.zoom.us.",
        "teams.microsoft.com", "meet.google.com/", "acme.webex.com/", "meet.jit.si/", "visio.numerique.gouv.fr/", "evil.example",
        "/j/81234567890", "/j/", "?pwd=AbC", "&amp;", "&", "&#", "&#58;", ";", "@", ":", ":443", ":8443", "#", "?", "=", "=\r\n", "=\n", "%", "%25",
        "%2F", "%C3", "\\", "/", ".", "..", "-", "–", "\u200b", "é", "о", "\ud800", "\x00", " ", "\n", "<", ">", '"', "'", "(", ")", "[", "]", "*", "**A",
        'href="', "href='", "<a ", "</a>", "<wbr>", "/l/meetup-join/19%3Aabc%40thread.v2/0", "/meet/2345678901234", "?context=", CONTEXT,
        "/dl/launcher/launcher.html?url=", "/_#/", "/v2/?meetingjoin=true#", "/light-meetings/launch?coords=", "eyJ0ZW5hbnRJZCI6MX0=",
        "https://eur03.safelinks.protection.outlook.com/?url=", "https://www.google.com/url?q=", "https://urldefense.com/v3/__", "__;Kw!!A!B$",
        "https://urldefense.proofpoint.com/v2/url?u=https-3A__zoom.us_j_", "https://l.facebook.com/l.php?u=", ZOOM, TEAMS, MEET, "abc-defg-hij",
    ]
)  # fmt: skip
ANY_TEXT = st.lists(PIECES | st.text(max_size=8), max_size=14).map("".join) | st.text()

ALLOWED_HOSTS = re.compile(
    r"(.+\.)?(zoom\.us|zoom\.com|zoomgov\.com|zoom\.com\.cn|zoom-x\.de|zm\.page|teams\.microsoft\.(com|us)|webex\.com|gotomeeting\.com"
    r"|gotowebinar\.com|gotomeet\.me|whereby\.com|bluejeans\.com|daily\.co)|meet\.google\.com|g\.co|hangouts\.google\.com"
    r"|teams\.live\.com|teams\.cloud\.microsoft|meet\.goto\.com|8x8\.vc|(app\.)?chime\.aws|app\.slack\.com|(v|meetings)\.ringcentral\.com"
    r"|discord\.gg|facetime\.apple\.com|meet\.livekit\.io|app\.cal\.com|meet\.jit\.si|visio\.(numerique\.gouv\.fr|lasuite\.coop|suite\.anct\.gouv\.fr)"
)


@settings(max_examples=600, deadline=None)
@given(text=ANY_TEXT)
@example(text="https://zoom.us/j/81234567890?pwd=\ud800")
@example(text="https://\u0130.zoom.us/j/81234567890")
@example(text="https://urldefense.com/v3/__https://zoom.us/*__;\u0130!")
def test_any_text_gives_a_link_of_an_allowed_host_or_none(text: str) -> None:
    found = find_meeting_link(conference=[text], location=text, description=text, title=text)
    links = [candidate.link for candidate in find_all_links(text, scheme_less=True)]
    assert any(link and link.is_supported for link in links) == bool(found and found.is_supported)
    for link in filter(None, [found, parse_meeting_url(text), *links]):
        parts = urlsplit(link.url)
        assert parts.scheme == "https"
        assert parts.netloc == parts.hostname, "no user name, no port"
        assert ALLOWED_HOSTS.fullmatch(parts.netloc)
        assert re.fullmatch(r"[!-~]+", link.url), "nothing but printable ASCII"
        assert len(link.url) <= 4096
        assert "zak" not in dict(pair.partition("=")[::2] for pair in parts.query.lower().split("&"))
        assert link.meeting_id.isprintable()


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_can_be_redacted(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


# --- linear time, by structure (bench/meeting_urls.py measures it)


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    modules: tuple[ModuleType, ...] = (extract, platforms, teams, urls, wrappers)
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield f"{module.__name__}.{name}", value


def repeats(tree: Any) -> Iterator[tuple[int, Any]]:
    """(most repetitions, body) of every repeat in a parsed pattern."""
    for operator, argument in tree:
        if str(operator) in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            yield argument[1], argument[2]
        for part in argument if isinstance(argument, (tuple, list)) else ():
            for branch in part if isinstance(part, list) else [part]:
                if hasattr(branch, "data"):
                    yield from repeats(branch)


def can_backtrack_badly(pattern: re.Pattern[str]) -> bool:
    """Whether a long repeat holds another repeat, so that a text can be shared out among them in many ways.

    `(?:\\.[a-z]+)*` is fine: a dot must come before every round, which leaves one way.
    """
    from re import _parser

    return any(
        most > 1000 and list(repeats(body)) and str(next(iter(body))[0]) != "LITERAL"
        for most, body in repeats(_parser.parse(pattern.pattern, pattern.flags))
    )


@pytest.mark.parametrize(
    ("name", "pattern"), list(patterns()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_pattern_can_backtrack_badly(name: str, pattern: re.Pattern[str]) -> None:
    assert not can_backtrack_badly(pattern), name


@pytest.mark.parametrize("bad", ["(a+)+", "(?:a+)*b", "x(?:a*|b)*", "(?:(?:ab)*c*)+", "(a|(b+))*"])
def test_a_pattern_that_can_backtrack_badly_is_noticed(bad: str) -> None:
    assert can_backtrack_badly(re.compile(bad))


@pytest.mark.parametrize("name", HOSTILE)
def test_twice_the_hostile_text_is_twice_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    characters = 0

    def counted(text: str) -> object:
        nonlocal characters
        characters += len(text)
        return split_url(text)

    monkeypatch.setattr(extract, "split_url", counted)
    work = []
    for size in (10_000, 20_000, 40_000):
        characters = 0
        text = HOSTILE[name](size)
        assert size * 0.75 < len(text) <= size, "else the measure says nothing"
        find_all_links(text, scheme_less=True)
        work.append(characters)
    assert work[2] <= 40 * 40_000
    assert work[2] <= 2.3 * work[1] + 5000
    assert work[1] <= 2.3 * work[0] + 5000
