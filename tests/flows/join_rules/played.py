"""A project whose events, rules and bots are changed through the service, with its model beside it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import select, update

from app.bots.launch import ClaimedBot, Launcher
from app.bots.service import drop_bots_of_calendar
from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.core.http import httpx
from app.core.ids import new_id
from app.events.data import RemoteAttendee, RemoteEvent, RemoteOrganizer, Unannounced, Window
from app.events.writer import apply_changes
from app.join_rules import runs, service
from app.join_rules.schemas import JoinRulesInput
from app.models import Bot, Calendar, CalendarEvent, WebhookDelivery, WebhookSubscription
from app.settings import Settings
from tests import factories
from tests.flows.join_rules.model import Meeting, Model, ModelCalendar, ModelEvent, Rules, WantedBot

OWNERS = ("ada@example.com", "bob@example.com", "cy@example.com", "dan@example.com")
# The last calendar is hosted here.
LOCAL = "cal3"
LINKS: tuple[tuple[str | None, str | None], ...] = (
    ("https://zoom.us/j/5551112222?pwd=a", "zoom"),
    ("https://meet.google.com/abc-defg-hij", "google_meet"),
    ("https://acme.webex.com/meet/ada", "webex"),  # BOT_RUNNER_PLATFORMS has no Webex
    (None, None),
)
# The creation too, of a bot that rules made.
_ANNOUNCED = {"scheduled", "updated", "event_changed", "launching", "launched", "fatal_error"}


@dataclass(frozen=True)
class Ref:
    calendar_id: str
    project_id: str


@dataclass
class Played:
    """Steps change the service and the model alike. `ids`: the service's ids by the test's names."""

    api: httpx.AsyncClient
    sessions: Sessions
    settings: Settings
    project_id: str
    launcher: Launcher
    start: datetime
    model: Model
    ids: dict[str, str] = field(default_factory=dict)
    subscription_id: str = field(default_factory=lambda: new_id("webhook"))
    claimed: list[ClaimedBot] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    # What was announced, by the delivery's id: with a calendar, its pending deliveries are deleted.
    announced: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    async def begin(
        cls,
        api: httpx.AsyncClient,
        sessions: Sessions,
        settings: Settings,
        project_id: str,
        launcher: Launcher,
    ) -> "Played":
        start = utcnow().replace(minute=0, second=0, microsecond=0)
        model = Model(platforms=settings.bot_runner_platforms)
        played = cls(api, sessions, settings, project_id, launcher, start, model)
        for number in range(len(OWNERS)):
            await played.add_calendar(number)
        async with transaction(sessions) as session:
            session.add(
                WebhookSubscription(
                    id=played.subscription_id,
                    project_id=project_id,
                    url="https://example.com",
                    triggers=["bot.state_change"],
                    secrets_sealed=b"",
                )
            )
        return played

    async def add_calendar(self, number: int) -> None:
        name = f"cal{number}"
        if name == LOCAL:
            body = {"platform": "local", "name": name, "owner_email": OWNERS[number], "timezone": "UTC"}
            response = await self.api.post("/api/v1/calendars", json=body)
            assert response.status_code == 201, response.text
            self.ids[name] = response.json()["id"]
        else:
            self.ids[name] = await factories.add_calendar(
                self.sessions,
                self.settings,
                self.project_id,
                client_id="client",
                platform_uuid=f"{name}-{new_id('cal')}",
                owner_email=OWNERS[number],
                secrets={"client_secret": "s", "refresh_token": "r"},
            )
        self.model.calendars[name] = ModelCalendar(OWNERS[number])

    # -- events ---------------------------------------------------------------------------------------------

    async def add(self, number: int, half_hours: int, link: int, fields: dict[str, Any]) -> None:
        calendar = f"cal{number}"
        if calendar not in self.ids:
            return
        name = f"event{len(self.model.events)}"
        event = ModelEvent(calendar, organizer=self.model.calendars[calendar].owner, name="Weekly sync")
        self.set_times(event, half_hours)
        event.meeting_url, event.meeting_platform = LINKS[link]
        if calendar == LOCAL:
            fields = {name: fields[name] for name in fields.keys() & {"name", "attendees"}}
        for field_name, value in fields.items():
            setattr(event, field_name, value)
        self.model.events[name] = event
        await self.write(name)

    def set_times(self, event: ModelEvent, half_hours: int) -> None:
        event.start = self.start + timedelta(minutes=30 * half_hours)
        event.end = event.start + timedelta(hours=1)

    async def change(self, number: int, **fields: Any) -> None:
        """Change an event: `half_hours` moves it, `link` is the number of its new link, others are as in the model."""
        name = self.live(number)
        if name is None:
            return
        event = self.model.events[name]
        if event.calendar == LOCAL and fields.keys() & {"response_status", "organizer", "visibility"}:
            return
        if "half_hours" in fields:
            self.set_times(event, fields.pop("half_hours"))
        if "link" in fields:
            event.meeting_url, event.meeting_platform = LINKS[fields.pop("link")]
        for field_name, value in fields.items():
            setattr(event, field_name, value)
        await self.write(name)

    async def cancel(self, number: int) -> None:
        name = self.live(number)
        if name is not None:
            self.model.events[name].is_deleted = True
            await self.write(name)

    async def revive(self, number: int) -> None:
        """A deleted event of a provider's calendar exists again."""
        events = self.model.events
        dead = [one for one, its in events.items() if its.is_deleted and its.calendar not in (LOCAL, "")]
        if dead:
            name = dead[number % len(dead)]
            if events[name].calendar in self.ids:
                events[name].is_deleted = False
                await self.write(name)

    def live(self, number: int) -> str | None:
        live = [
            name
            for name, event in self.model.events.items()
            if not event.is_deleted and event.calendar in self.ids
        ]
        return live[number % len(live)] if live else None

    async def write(self, name: str) -> None:
        event = self.model.events[name]
        if event.calendar == LOCAL:
            await self._write_hosted(name, event)
        else:
            await self.sync(event.calendar, [name])

    async def sync(self, calendar: str, names: Sequence[str]) -> None:
        """Write events as a sync of their calendar does, in one transaction."""
        ref = Ref(self.ids[calendar], self.project_id)
        window = Window(self.start - timedelta(days=1), self.start + timedelta(days=28))
        removed: dict[str, str | None] = {}
        written = []
        for name in names:
            event = self.model.events[name]
            if event.is_deleted and len(name) % 2 == 0 and name in self.ids:
                removed[self.ids[name]] = None
            else:
                written.append(_remote(name, event))
        async with transaction(self.sessions) as session:
            await session.execute(
                select(Calendar.id).where(Calendar.id == ref.calendar_id).with_for_update(key_share=True)
            )
            await apply_changes(
                session,
                ref,
                written,
                window=window,
                removed=removed,
                earlier=Unannounced(),
                is_announced_now=True,
                bot_platforms=self.settings.bot_runner_platforms,
            )
        if any(name not in self.ids for name in names):
            rows = await factories.load_events(self.sessions, ref.calendar_id)
            self.ids |= {name: rows[name].id for name in names if name in rows}

    async def _write_hosted(self, name: str, event: ModelEvent) -> None:
        path = "/api/v1/calendar_events"
        if event.is_deleted:
            response = await self.api.delete(f"{path}/{self.ids[name]}?send_invitations=false")
            assert response.status_code == 200, response.text
            return
        assert event.start is not None
        assert event.end is not None
        body: dict[str, Any] = {
            "name": event.name,
            "start_time": isoformat(event.start),
            "end_time": isoformat(event.end),
            "meeting_url": event.meeting_url,
            "attendees": [{"email": one} for one in event.attendees],
            "send_invitations": False,
        }
        if name in self.ids:
            response = await self.api.patch(f"{path}/{self.ids[name]}", json=body)
            assert response.status_code == 200, response.text
        else:
            body["calendar_id"] = self.ids[event.calendar]
            response = await self.api.post(path, json=body)
            assert response.status_code == 201, response.text
            self.ids[name] = response.json()["id"]
        shown = response.json()
        # What the API shows is what rules see.
        event.attendees = tuple(person["email"] for person in shown["attendees"])
        event.response_status = shown["response_status"]
        event.organizer = (shown["organizer"] or {}).get("email")
        event.meeting_platform = shown["meeting_platform"]

    # -- rules and policies ---------------------------------------------------------------------------------

    async def put_rules(self, rules: Rules) -> None:
        response = await self.api.put("/api/v1/join_rules", json=rules.as_json())
        assert response.status_code == 200, response.text
        assert response.json() == (await self.api.get("/api/v1/join_rules")).json()
        self.model.rules = rules

    async def begin_put_rules(self, rules: Rules) -> None:
        """Store rules; the process ends before it has applied them."""
        async with transaction(self.sessions) as session:
            await service.put_rules(session, self.project_id, _read_rules(rules))
        self.model.rules = rules

    async def put_calendar_rules(self, number: int, rules: Rules | None) -> None:
        """Give a calendar rules of its own, or (None) the project's again."""
        name = f"cal{number}"
        if name not in self.ids:
            return
        path = f"/api/v1/calendars/{self.ids[name]}/join_rules"
        if rules is None:
            response = await self.api.delete(path)
            had_own = self.model.calendars[name].rules is not None
            assert response.status_code == (200 if had_own else 404), response.text
        else:
            response = await self.api.put(path, json=rules.as_json())
            assert response.status_code == 200, response.text
        self.model.calendars[name].rules = rules

    async def begin_put_calendar_rules(self, number: int, rules: Rules | None) -> None:
        """The same, by a process that ends before it has applied them."""
        calendar = self.model.calendars[f"cal{number}"]
        calendar_id = self.ids[f"cal{number}"]
        async with transaction(self.sessions) as session:
            if rules is not None:
                await service.put_rules(session, self.project_id, _read_rules(rules), calendar_id)
            elif calendar.rules is not None:
                await service.delete_rules(session, self.project_id, calendar_id)
        calendar.rules = rules

    async def set_policy(self, number: int, policy: Any) -> None:
        name = self.live(number)
        if name is None or name not in self.ids:
            return
        path = f"/api/v1/calendar_events/{self.ids[name]}/bot_policy"
        response = await self.api.put(path, json={"policy": policy})
        event = self.model.events[name]
        if policy == "always" and not any(rule.bot for rule in self.model.rules_of(event).rules):
            assert response.status_code == 400, response.text
            assert list(response.json()) == ["policy"]
            return
        assert response.status_code == 200, response.text
        event.policy = policy
        if policy == "always":
            event.dismissed = None
            for other in self.model.shared_with(name):
                self.model.events[other].dismissed = None

    async def preview(self, rules: Rules) -> dict[str, Any]:
        response = await self.api.post("/api/v1/join_rules/preview", json=rules.as_json())
        assert response.status_code == 200, response.text
        shown: dict[str, Any] = response.json()
        return shown

    async def move(self, number: int, half_hours: int) -> None:
        await self.change(number, half_hours=half_hours)

    async def set_link(self, number: int, link: int) -> None:
        await self.change(number, link=link)

    async def set_fields(self, number: int, fields: dict[str, Any]) -> None:
        await self.change(number, **fields)

    async def apply(self, batches: int) -> None:
        """Some steps of applying changed rules, by a worker that stops then."""
        size = runs._BatchSize()
        for _ in range(batches):
            await runs._apply_batch(
                self.sessions, self.settings, self.project_id, from_the_end=batches % 2 == 0, size=size
            )

    async def apply_all(self) -> None:
        """Apply changed rules to the end."""
        assert await runs.apply_runs(self.sessions, self.settings, self.project_id, seconds=20)

    # -- calendars ------------------------------------------------------------------------------------------

    async def disconnect(self, number: int) -> None:
        name = f"cal{number}"
        if name not in self.ids or name == LOCAL:
            return
        async with transaction(self.sessions) as session:
            await session.execute(
                update(Calendar).where(Calendar.id == self.ids[name]).values(state="disconnected")
            )
            # As app/sync/effects.py does, when a sync is refused for good.
            await service.leave_calendar(session, self.settings, self.project_id, self.ids[name])
            await drop_bots_of_calendar(session, self.ids[name], "calendar_disconnected")
        self.model.calendars[name].is_connected = False

    async def reconnect(self, number: int) -> None:
        name = f"cal{number}"
        if name not in self.ids or name == LOCAL:
            return
        body = {"client_secret": "s2", "refresh_token": "r2"}
        response = await self.api.patch(f"/api/v1/calendars/{self.ids[name]}", json=body)
        assert response.status_code == 200, response.text
        self.model.calendars[name].is_connected = True

    async def delete_calendar(self, number: int) -> None:
        """Delete a calendar and connect a new one in its place."""
        name = f"cal{number}"
        await self.read_announcements()
        response = await self.api.delete(f"/api/v1/calendars/{self.ids.pop(name)}")
        assert response.status_code == 200, response.text
        former = f"{name}-deleted-{len(self.model.calendars)}"
        self.model.calendars[former] = replace(
            self.model.calendars.pop(name), is_connected=False, exists=False
        )
        for event in self.model.events.values():
            if event.calendar == name:
                event.calendar = former
        await self.add_calendar(number)

    # -- bots -----------------------------------------------------------------------------------------------

    async def delete_bot(self, number: int) -> None:
        """A person deletes a scheduled bot."""
        bots = await self.scheduled()
        if not bots:
            return
        bot = bots[number % len(bots)]
        response = await self.api.delete(f"/api/v1/bots/{bot.id}")
        assert response.status_code == 200, response.text
        name = next(name for name, event_id in self.ids.items() if event_id == bot.calendar_event_id)
        assert bot.meeting_url is not None
        self.model.events[name].dismissed = Meeting(bot.join_at, bot.meeting_url)

    async def claim(self) -> None:
        """A worker claims the bots of the next hours. `hand_over` gives them to the runner."""
        names = {event_id: name for name, event_id in self.ids.items()}
        before = {bot.id: bot for bot in await self.scheduled()}
        self.claimed += await self.launcher.claim(100)
        still = {bot.id for bot in await self.scheduled()}
        for bot_id, bot in before.items():
            if bot_id not in still:
                assert bot.calendar_event_id is not None
                assert bot.meeting_url is not None
                meeting = Meeting(bot.join_at, bot.meeting_url)
                self.model.events[names[bot.calendar_event_id]].joined.append(meeting)

    async def hand_over(self) -> None:
        for bot in self.claimed:
            await self.launcher.handle(bot)
        self.claimed.clear()

    async def scheduled(self) -> list[Bot]:
        async with self.sessions() as session:
            rows = await session.scalars(
                select(Bot)
                .where(Bot.project_id == self.project_id, Bot.state == "scheduled")
                .order_by(Bot.created_at, Bot.id)
            )
            found = list(rows)
        self.seen |= {bot.id for bot in found}
        return found

    async def as_wanted(self) -> list[WantedBot]:
        names = {event_id: name for name, event_id in self.ids.items()}
        return [
            WantedBot(names[bot.calendar_event_id or ""], bot.bot_name, bot.join_at, bot.meeting_url or "")
            for bot in await self.scheduled()
        ]

    # -- checks ---------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """The scheduled bots are those of the model, and each change of a bot was announced once."""
        faults = self.model.faults(await self.as_wanted(), utcnow())
        assert not faults, faults
        await self.check_announcements()

    async def check_meetings(self) -> None:
        """No meeting has two scheduled bots. Right at any time where all rules say so."""
        found = [(one, self.model.events[one.event]) for one in await self.as_wanted()]
        for number, (one, event) in enumerate(found):
            for other, its in found[:number]:
                assert not event.overlaps(its), (one, other)

    async def check_announcements(self) -> None:
        """A bot that was deleted was announced once as such, and each change of another one once."""
        await self.read_announcements()
        messages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for message in self.announced.values():
            messages[message["bot_id"]].append(message["data"])
        async with self.sessions() as session:
            bots = {bot.id: bot for bot in await session.scalars(select(Bot))}
        for bot_id in self.seen | messages.keys():
            bot = bots.get(bot_id)
            deleted = [one for one in messages[bot_id] if one["state"] == "deleted"]
            assert len(deleted) == (0 if bot is not None else 1), (bot_id, messages[bot_id])
            if bot is not None:
                entries = [one["type"] for one in bot.events if one["type"] in _ANNOUNCED]
                assert len(messages[bot_id]) == len(entries), (bot.events, messages[bot_id])

    async def read_announcements(self) -> None:
        async with self.sessions() as session:
            rows = await session.execute(
                select(WebhookDelivery.id, WebhookDelivery.body).where(
                    WebhookDelivery.subscription_id == self.subscription_id
                )
            )
            self.announced |= {row.id: orjson.loads(row.body) for row in rows}

    async def stored(self) -> dict[str, CalendarEvent]:
        async with self.sessions() as session:
            rows = await session.scalars(select(CalendarEvent))
            return {row.id: row for row in rows}


def _read_rules(rules: Rules) -> JoinRulesInput:
    return JoinRulesInput.model_validate(rules.as_json())


def _remote(name: str, event: ModelEvent) -> RemoteEvent:
    return RemoteEvent(
        platform_uuid=name,
        # Not hashed by itself: what comes from a provider differs in `raw`, too.
        raw=orjson.dumps({"visibility": event.visibility}).decode(),
        start_time=event.start,
        end_time=event.end,
        is_all_day=event.is_all_day,
        name=event.name,
        organizer=RemoteOrganizer(event.organizer, None) if event.organizer is not None else None,
        attendees=tuple(
            RemoteAttendee(one, None, is_organizer=one == event.organizer) for one in event.attendees
        ),
        response_status=event.response_status,  # type: ignore[arg-type] # the words are those of the API
        meeting_url=event.meeting_url,
        meeting_platform=event.meeting_platform,
        visibility=event.visibility,  # type: ignore[arg-type] # the words are those of the API
        is_cancelled=event.is_deleted,
    )
