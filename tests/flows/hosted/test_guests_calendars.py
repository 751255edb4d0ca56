"""What guests' calendars make of our mails, after random histories of edits.

Two kinds of calendars are modelled, independently of the application's code. Both order what they get by (SEQUENCE,
DTSTAMP), in whatever order the mails arrive:

    PerInstance  a series' REQUEST changes the series; instances that are known by themselves stay as they are known
                 (RFC 5546)
    WholeSet     a series' REQUEST is all there is: known instances are forgotten (sabre, Nextcloud)

`EDIT_HISTORIES=500 python -m pytest tests/flows/hosted/test_guests_calendars.py` tries more, and other ones each time.
"""

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from typing import Any, NamedTuple

import pytest
import recurring_ical_events
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from icalendar import Calendar, Timezone
from sqlalchemy import select

from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from app.models import InvitationMail

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9",
    email_from="Calendars <calendar@example.net>",
    calendar_sync_window_future_days=700,
)

HISTORIES = int(os.environ.get("EDIT_HISTORIES", "0"))
GUESTS = ["bob@example.org", "cy@example.org", "dan@example.org"]
OWNER = "ada@example.com"
ZONES = ["Europe/Paris", "UTC", "America/New_York"]
PLACES = ["Room 1", "Room 2", None]
NAMES = ["Analysis", "Algebra"]
HOURS = [9, 11, 15]

Key = datetime | date
Order = tuple[int, datetime]


# -- the models ---------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """An instance as a calendar shows it."""

    start: datetime
    end: datetime
    name: str
    place: str | None


class Message(NamedTuple):
    method: str
    event: Any  # a VEVENT
    zones: tuple[Timezone, ...]

    @property
    def order(self) -> Order:
        return int(self.event["SEQUENCE"]), self.event["DTSTAMP"].dt

    @property
    def key(self) -> Key | None:
        found = self.event.get("RECURRENCE-ID")
        return None if found is None else key_of(found.dt)


def key_of(at: Key) -> Key:
    return at.astimezone(UTC) if isinstance(at, datetime) else at


def moment(at: Key) -> datetime:
    return at.astimezone(UTC) if isinstance(at, datetime) else datetime(at.year, at.month, at.day, tzinfo=UTC)


def messages_in(mail: bytes) -> list[Message]:
    for part in message_from_bytes(mail).walk():
        if part.get_content_type() == "text/calendar":
            calendar = Calendar.from_ical(part.get_payload(decode=True))  # type: ignore[arg-type] # bytes
            zones = tuple(zone for zone in calendar.walk("VTIMEZONE") if isinstance(zone, Timezone))
            return [Message(str(calendar["METHOD"]), event, zones) for event in calendar.walk("VEVENT")]
    raise AssertionError("no calendar part")


@dataclass
class PerInstance:
    series: Message | None = None
    instances: dict[Key, Message] = field(default_factory=dict)

    def take(self, message: Message) -> None:
        if self.series is not None and message.order < self.series.order:
            return
        key = message.key
        if key is not None:
            known = self.instances.get(key)
            if known is None or message.order >= known.order:
                self.instances[key] = message
            return
        self.series = message
        self.series_taken()

    def series_taken(self) -> None:
        assert self.series is not None
        if self.series.method == "CANCEL":
            self._forget_older()

    def _forget_older(self) -> None:
        assert self.series is not None
        order = self.series.order
        self.instances = {key: one for key, one in self.instances.items() if one.order > order}

    def shows(self) -> list[Shown]:
        changed = {key: one for key, one in self.instances.items() if one.method == "REQUEST"}
        off = self.instances.keys() - changed.keys()
        if self.series is None or self.series.method == "CANCEL":
            return sorted((shown(one.event) for one in changed.values()), key=str)
        events = {
            key: changed.get(key, event) for key, event in self._occurrences().items() if key not in off
        }
        return sorted((shown(one.event) for one in events.values()), key=str)

    def _occurrences(self) -> dict[Key, Message]:
        assert self.series is not None
        return {key: self.series._replace(event=event) for key, event in occurrences(self.series).items()}


class WholeSet(PerInstance):
    def series_taken(self) -> None:
        self._forget_older()


def occurrences(series: Message) -> dict[Key, Any]:
    calendar = Calendar()
    for zone in series.zones:
        calendar.add_component(zone)
    calendar.add_component(series.event)
    start = moment(series.event["DTSTART"].dt)
    found = recurring_ical_events.of(calendar).between(start - timedelta(days=2), start + timedelta(days=600))
    return {key_of(event["DTSTART"].dt): event for event in found}


def shown(event: Any) -> Shown:
    start, end = event["DTSTART"].dt, event["DTEND"].dt
    place = event.get("LOCATION")
    return Shown(moment(start), moment(end), str(event["SUMMARY"]), None if place is None else str(place))


# -- histories ----------------------------------------------------------------------------------------------

places = st.integers(0, 5)
people = st.permutations([*GUESTS, OWNER]).flatmap(
    lambda some: st.sampled_from([some[:1], some[:2], some[:2], some[:3], some])
)
shifts = st.sampled_from([timedelta(hours=2), timedelta(days=1), timedelta(days=-1), timedelta(days=7)])
words = st.one_of(
    st.builds(lambda place: {"location": place}, st.sampled_from(PLACES)),
    st.builds(lambda name: {"name": name}, st.sampled_from(NAMES)),
)
invited = st.builds(lambda some: {"attendees": some}, people)
times = st.one_of(
    st.builds(lambda shift: {"shift": shift}, shifts),
    st.builds(lambda hours: {"hours": hours}, st.sampled_from([1, 2])),
    st.builds(lambda zone: {"timezone": zone}, st.sampled_from(ZONES)),
)
both = st.builds(lambda one, other: one | other, st.one_of(words, times), invited)
rules = st.sampled_from(
    [
        "FREQ=DAILY;COUNT=3",
        "FREQ=DAILY;COUNT=6",
        "FREQ=DAILY;COUNT=8",
        "FREQ=DAILY;INTERVAL=2;COUNT=4",
        "FREQ=WEEKLY;COUNT=4",
    ]
)
edits = st.one_of(
    st.tuples(st.just("instance"), places, st.one_of(words, invited)),
    st.tuples(st.just("instance"), places, st.one_of(words, invited, times, both)),
    st.tuples(st.just("series"), places, st.one_of(words, invited)),
    st.tuples(st.just("series"), places, st.one_of(words, invited, times, both)),
    st.tuples(st.just("rule"), places, rules),
    st.tuples(st.just("cancel"), places, st.none()),
    st.tuples(st.just("reply"), places, st.sampled_from(GUESTS)),
)
histories = st.fixed_dictionaries(
    {
        "rule": st.one_of(rules, rules, st.none()),
        "zone": st.sampled_from(ZONES),
        "first_day": st.sampled_from([3, 3, -2]),
        "is_all_day": st.sampled_from([False, False, True]),
        "people": people,
        "edits": st.lists(edits, min_size=12, max_size=16),
        "is_deleted": st.booleans(),
        "seed": st.integers(0, 2**32),
    }
)


# The series was sent while Bob was not invited to one of its instances, so that he has it in EXDATE.
INVITED_BACK = {
    "rule": "FREQ=DAILY;COUNT=6",
    "zone": "Europe/Paris",
    "first_day": 3,
    "is_all_day": False,
    "people": GUESTS,
    "edits": [
        ("instance", 1, {"attendees": GUESTS[1:2]}),
        ("instance", 3, {"location": "Room 2"}),
        ("series", 0, {"location": "Room 1"}),
        ("instance", 1, {"attendees": GUESTS[:2]}),
        ("instance", 1, {"attendees": GUESTS[1:2]}),
        ("series", 0, {"name": "Algebra"}),
        ("instance", 1, {"attendees": GUESTS, "location": None}),
        ("series", 0, {"shift": timedelta(days=1)}),
    ],
    "is_deleted": True,
    "seed": 1,
}

# Guests had mails about an instance of an all-day series before the series got another zone, and after.
OTHER_MIDNIGHTS: dict[str, Any] = {
    "rule": "FREQ=DAILY;COUNT=4",
    "zone": "UTC",
    "first_day": 3,
    "is_all_day": True,
    "people": [*GUESTS, OWNER],
    "edits": [
        ("instance", 2, {"location": "Room 1"}),
        ("series", 0, {"timezone": "America/New_York"}),
        ("instance", 1, {"attendees": GUESTS[:1]}),
        ("instance", 2, {"location": "Room 2"}),
        ("instance", 1, {"attendees": GUESTS[:2]}),
        ("series", 0, {"name": "Algebra"}),
        # The instance is like the series again.
        ("instance", 2, {"location": None}),
        ("series", 0, {"timezone": "Europe/Paris"}),
        ("series", 0, {"location": "Room 1"}),
    ],
    "is_deleted": True,
    "seed": 1,
}


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class History:
    """Plays the edits of one event over the API."""

    def __init__(self, api: httpx.AsyncClient, app: Any) -> None:
        self.api, self.app = api, app
        self.tokens = RsvpTokens(app.state.calbridge.settings.fernet_keys)
        self.calendar_id = self.uid = ""

    async def begin(self, plan: dict[str, Any]) -> bool:
        calendar = {"platform": "local", "name": "Lectures", "owner_email": OWNER, "timezone": plan["zone"]}
        self.calendar_id = (await self.api.post("/api/v1/calendars", json=calendar)).json()["id"]
        start = datetime.now(UTC).replace(hour=9, minute=0, second=0, microsecond=0)
        start += timedelta(days=plan["first_day"])
        self.is_all_day = plan["is_all_day"]
        body = {
            "calendar_id": self.calendar_id,
            "name": "Analysis",
            "timezone": plan["zone"],
            "is_all_day": self.is_all_day,
            **self._times(
                start, start + timedelta(days=1) if self.is_all_day else start + timedelta(hours=1)
            ),
            "attendees": [{"email": email} for email in plan["people"]],
        }
        if plan["rule"]:
            body["recurrence"] = [f"RRULE:{plan['rule']}"]
        made = await self.api.post("/api/v1/calendar_events", json=body)
        if made.status_code != 201:
            assert made.status_code == 400, made.text
            return False
        self.uid = made.json()["ical_uid"]
        return True

    def _times(self, start: datetime, end: datetime) -> dict[str, str]:
        if self.is_all_day:
            return {"start_time": f"{start:%Y-%m-%d}", "end_time": f"{end:%Y-%m-%d}"}
        return {"start_time": text(start), "end_time": text(end)}

    async def rows(self) -> list[dict[str, Any]]:
        query = {"calendar_id": self.calendar_id, "ordering": "start_time", "is_deleted": "false"}
        found: list[dict[str, Any]] = (await self.api.get("/api/v1/calendar_events", params=query)).json()[
            "results"
        ]
        return found

    async def play(self, kind: str, place: int, what: Any) -> None:
        rows = await self.rows()
        if not rows:
            return
        row = rows[place % len(rows)]
        path = f"/api/v1/calendar_events/{row['id']}"
        if kind == "cancel":
            if len(rows) == 1:
                return  # that would be the end
            response = await self.api.delete(path)
        elif kind == "reply":
            slot = row["platform_uuid"].removeprefix(self.uid).lstrip("_") if place % 2 else ""
            token = self.tokens.sign(Subject(self.calendar_id, self.uid, slot, what))
            # An address of its own, which has not asked too often.
            transport = httpx.ASGITransport(self.app, client=(f"192.0.2.{random.randrange(256)}", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as browser:
                response = await browser.post("/rsvp/", data={"token": token, "action": "accepted"})
            assert response.status_code < 500
            return
        elif kind == "rule":
            response = await self.api.patch(f"{path}?scope=series", json={"recurrence": [f"RRULE:{what}"]})
        else:
            body = self._body(row, what)
            query = "?scope=series" if kind == "series" else ""
            response = await self.api.patch(f"{path}{query}", json=body)
        assert response.status_code in {200, 400}, response.text

    def _body(self, row: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = {name: what[name] for name in ("location", "name", "timezone") if name in what}
        if "attendees" in what:
            body["attendees"] = [{"email": email} for email in what["attendees"]]
        if "shift" in what or "hours" in what:
            start, end = (datetime.fromisoformat(row[name]) for name in ("start_time", "end_time"))
            if self.is_all_day:
                # The days that it covers, wherever the zone puts their midnights.
                start, end = (at + timedelta(hours=12) for at in (start, end))
                shift, length = (
                    timedelta(days=what.get("shift", timedelta(0)).days),
                    timedelta(days=what.get("hours", 1)),
                )
            else:
                shift, length = what.get("shift", timedelta(0)), timedelta(hours=what.get("hours", 1))
            body |= self._times(start + shift, start + shift + length)
        return body

    async def delete(self) -> None:
        rows = await self.rows()
        if rows:
            response = await self.api.delete(f"/api/v1/calendar_events/{rows[0]['id']}?scope=series")
            assert response.status_code == 200


def shown_to(guest: str, rows: Iterable[dict[str, Any]]) -> list[Shown]:
    """What the API says that this guest is invited to."""
    found = []
    for row in rows:
        if guest in {person["email"] for person in row["attendees"]}:
            start, end = (datetime.fromisoformat(row[name]) for name in ("start_time", "end_time"))
            if row["is_all_day"]:
                start, end = ((at + timedelta(hours=12)).replace(hour=0) for at in (start, end))
            found.append(Shown(start, end, row["name"], row["location"]))
    return sorted(found, key=str)


def ahead(instances: Iterable[Shown]) -> list[Shown]:
    """No guest is notified of what is over; today is left out, since days end at different moments."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    return [one for one in instances if one.end > tomorrow]


async def mails_to(sessions: Any, calendar_id: str, guest: str) -> list[Message]:
    async with sessions() as session:
        rows = await session.scalars(
            select(InvitationMail)
            .where(InvitationMail.calendar_id == calendar_id, InvitationMail.recipient_email == guest)
            .order_by(InvitationMail.position)
        )
        return [message for row in rows for message in messages_in(row.mail or b"")]


@pytest.fixture
def history(app, api):
    return lambda: History(api, app)


@settings(
    max_examples=HISTORIES or 8,
    derandomize=not HISTORIES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
    phases=[Phase.explicit, Phase.generate, Phase.shrink] if HISTORIES else [Phase.explicit, Phase.generate],
    print_blob=True,
)
@given(plan=histories)
@example(plan=INVITED_BACK)
@example(plan=OTHER_MIDNIGHTS)
async def test_guests_calendars_end_with_what_the_api_shows(history, sessions, plan):
    played = history()
    if not await played.begin(plan):
        return
    arrived: dict[str, list[Message]] = {guest: [] for guest in GUESTS}
    calendars = {(guest, kind): kind() for guest in GUESTS for kind in (PerInstance, WholeSet)}
    for edit in [None, *plan["edits"], *(["delete"] if plan["is_deleted"] else [])]:
        if edit == "delete":
            await played.delete()
        elif edit is not None:
            await played.play(*edit)
        rows = await played.rows()
        for guest in GUESTS:
            messages = await mails_to(sessions, played.calendar_id, guest)
            new, arrived[guest] = messages[len(arrived[guest]) :], messages
            expected = ahead(shown_to(guest, rows))
            for kind in (PerInstance, WholeSet):
                for message in new:
                    calendars[guest, kind].take(message)
                sent = [(m.method, m.key, m.order[0]) for m in messages]
                assert ahead(calendars[guest, kind].shows()) == expected, (kind.__name__, guest, edit, sent)
    for guest, messages in arrived.items():
        shuffled = list(messages)
        random.Random(plan["seed"]).shuffle(shuffled)
        expected = ahead(shown_to(guest, await played.rows()))
        for kind in (PerInstance, WholeSet):
            calendar = kind()
            for message in shuffled:
                calendar.take(message)
            assert ahead(calendar.shows()) == expected, (kind.__name__, guest, "shuffled")
