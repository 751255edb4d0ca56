"""Links of every platform: recognised or refused (docs/reference/meeting-links.md)."""

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest

from app.meeting_links import extract, platforms
from app.meeting_links.extract import (
    MeetingHosts,
    MeetingLink,
    find_all_links,
    find_meeting_link,
    find_platform,
    parse_meeting_url,
)
from tests.unit.meeting_links.links import CONTEXT, MEET, OID, TEAMS, TEAMS_SHORT, TID, ZOOM, enc, safe_link

TEAMS_ID = f"19:meeting_ABC@thread.v2/{TID}/{OID}"


def b64(value: dict[str, str]) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def context(**members: Any) -> str:
    return quote(json.dumps(members), safe="")


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
def test_the_platform_of_a_link_is_known_by_its_host(url: str, platform: str | None) -> None:
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
