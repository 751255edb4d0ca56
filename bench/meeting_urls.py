"""The CPU time of one core to find meeting links.

1. Descriptions per second: 2 kB of HTML each, as Outlook, Google Calendar, Zoom and newsletters write them.
2. Linear time: texts that are built to be slow, in two sizes. Twice the text must take about twice the time.
"""

import random
import time
from collections.abc import Callable
from urllib.parse import quote

from app.meeting_links.extract import MAX_TEXT_LENGTH, find_all_links, find_meeting_link, redact

DESCRIPTIONS = 10_000
DESCRIPTION_LENGTH = 2_000
TARGET_PER_SECOND = 10_000

_SENTENCES = (
    '<p style="margin:0;font-family:Calibri,sans-serif">Hi all, let&#39;s go through the open points before Friday&nbsp;&amp; agree on the next steps.</p>\r\n',
    '<div><span lang="EN-US">Please read <a href="https://docs.example.com/d/1a2B3c?usp=sharing&amp;ts=65">the notes</a> first.</span></div>\r\n',
    "<ul><li>Budget 2027 – révision</li><li>Hiring: two offers out</li><li>Release 4.2</li></ul><br>\r\n",
    '<p>Agenda: <a href="https://wiki.example.org/pages/viewpage.action?pageId=12345&amp;src=mail">wiki</a>, tracker: https://tracker.example.org/browse/ABC-123.</p>\r\n',
    '<img src="https://static.example.com/images/logo@2x.png" width="120" height="40" alt="">\r\n',
)


def _zoom(number: random.Random) -> str:
    meeting = number.randrange(10**10, 10**11)
    url = f"https://us02web.zoom.us/j/{meeting}?pwd=Ab{meeting:x}.1"
    return (
        f'<p>Join Zoom Meeting<br><a href="{url}">{url}</a></p><p>Meeting ID: {meeting}<br>Passcode: 123456</p>'
        '<p>Find your local number: <a href="https://us02web.zoom.us/u/kbXyZ">https://us02web.zoom.us/u/kbXyZ</a></p>'
    )


def _teams(number: random.Random) -> str:
    inner = f"https://teams.microsoft.com/meet/{number.randrange(10**12, 10**13)}?p=AbCdEf{number.randrange(10**6)}"
    safe = (
        f"https://eur03.safelinks.protection.outlook.com/?url={quote(inner, safe='')}"
        f"&amp;data=05%7C02%7Cada%40example.com%7C{number.randrange(10**30):x}&amp;sdata={'x' * 40}%3D&amp;reserved=0"
    )
    return (
        "<div>________________________________________________________________________________</div>"
        '<div><span style="font-size:24px"><b>Microsoft Teams</b></span> '
        '<a href="https://aka.ms/JoinTeamsMeeting?omkt=en-US">Need help?</a></div>'
        f'<div><a href="{safe}" originalsrc="{inner}"><b>Join the meeting now</b></a></div>'
        '<div><a href="https://dialin.teams.microsoft.com/usp/pstnconferencing">Local numbers</a> | '
        '<a href="https://teams.microsoft.com/meetingOptions/?organizerId=1&amp;tenantId=2">Meeting options</a></div>'
    )


def _meet(number: random.Random) -> str:
    letters = "".join(number.choices("abcdefghijklmnopqrstuvwxyz", k=10))
    return (
        "-::~:~::~:~:~:~:~:~:~:~:~:~:~:~:~:~::~:~::-<br>Join with Google Meet: "
        f"https://meet.google.com/{letters[:3]}-{letters[3:7]}-{letters[7:]}<br>Or dial: (US) +1 555-010-0100 PIN: 123#<br>"
        "More phone numbers: https://tel.meet/abc-defg-hij?pin=123&amp;hs=7<br>-::~:~::-"
    )


def _none(_: random.Random) -> str:
    return '<p>See you in room 4. <a href="https://maps.example.com/?q=1+Main+St">Map</a></p>'


def descriptions(count: int = DESCRIPTIONS) -> list[str]:
    """Return the texts, which are the same on every run.

    A quarter each has Zoom, Teams in Safe Links, Meet, no link.
    """
    number = random.Random(20261120)
    texts = []
    for index in range(count):
        block = (_zoom, _teams, _meet, _none)[index % 4](number)
        body = ""
        while len(body) + len(block) < DESCRIPTION_LENGTH:
            body += number.choice(_SENTENCES)
        texts.append(f"<html><body>{body}{block}</body></html>")
    return texts


HOSTILE: dict[str, Callable[[int], str]] = {
    "https:// again and again": lambda size: "https://" * (size // 8),
    "unfinished attributes": lambda size: "href=\"href='" * (size // 12),
    "attributes and spaces": lambda size: ("href" + " " * 40 + "=") * (size // 45),
    "many links of one host": lambda size: "https://zoom.us/x " * (size // 18),
    "percent upon percent": lambda size: ("https://zoom.us/" + "%2525" * 800 + " ") * (size // 4017),
    "wrapper within wrapper": lambda size: (
        ("https://l.facebook.com/l.php?u=" * 100 + "https://zoom.us/ ") * (size // 3117)
    ),
    "stars of URL Defense": lambda size: (
        ("https://urldefense.com/v3/__https://zoom.us/" + "*" * 3000 + "__;Kw!!A!B$ ") * (size // 3056)
    ),
    "half entities": lambda size: "http://" + "&#x26" * (size // 5 - 2),
    "soft line breaks": lambda size: "https://a.example/" + "=\r\na" * (size // 4 - 5),
    "names with dots": lambda size: "a." * (size // 2 - 1) + "/",
    "deep JSON": lambda size: (
        ("https://teams.microsoft.com/l/meetup-join/19:a@thread.v2/0?context=" + "[" * 3000 + " ")
        * (size // 3070)
    ),
    "secrets": lambda size: "?p=&pwd=%253F" * (size // 13),
}


def _seconds(work: Callable[[], object]) -> float:
    """Return the best of five runs in CPU seconds."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    texts = descriptions()
    found = 0

    def extract() -> None:
        nonlocal found
        found = sum(find_meeting_link(description=text) is not None for text in texts)

    rate = len(texts) / _seconds(extract)
    size = sum(map(len, texts)) // len(texts)
    verdict = "ok" if rate >= TARGET_PER_SECOND else "TOO SLOW"
    print(
        f"meeting links: {rate:,.0f} descriptions of {size} characters per CPU second"
        f" (target {TARGET_PER_SECOND:,}: {verdict}); {found} of {len(texts)} have one"
    )
    print("hostile texts, CPU time at 50,000 and 100,000 characters (2.0 is linear, 4.0 quadratic):")
    for name, build in HOSTILE.items():
        half, whole = build(MAX_TEXT_LENGTH // 2), build(MAX_TEXT_LENGTH)
        times = [
            _seconds(lambda text=text: (find_all_links(text, scheme_less=True), redact(text)))  # type: ignore[misc]  # bound at once
            for text in (half, whole)
        ]
        print(
            f"  {name:28} {times[0] * 1000:7.2f} ms  {times[1] * 1000:7.2f} ms  ratio {times[1] / times[0]:.1f}"
        )


if __name__ == "__main__":
    main()
