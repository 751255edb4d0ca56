"""Calendars of one project that are written at the same time as the rules, with the same meetings in each."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text

from app.core.clock import utcnow
from tests.flows.join_rules.model import ModelEvent, Rule, Rules
from tests.flows.join_rules.played import LINKS, LOCAL, Played

_ROUNDS = 12
_EVENTS = 4


def _rules(number: int) -> Rules:
    """Sets that differ in the scope, the bot, and in what they join."""
    exception = Rule("not these", {"name_contains": [f"no {number % 3}"]}, join=False)
    joined = Rule("joined", {}, bot={"bot_name": f"Bot {number % 2}"})
    return Rules((exception, joined) if number % 4 else (joined,), "event" if number % 5 == 4 else "meeting")


class Storm:
    """Tasks that change one project at once. Each event belongs to one task, so that the model is not ambiguous."""

    def __init__(self, played: Played, seed: int) -> None:
        self.played = played
        self.random = random.Random(seed)
        self.is_over = False

    async def write_events(self, calendar: str) -> None:
        """Syncs of one calendar: several events in a transaction, in an order of its own."""
        names = [f"{calendar}-{number}" for number in range(_EVENTS)]
        model = self.played.model
        for name in names:
            model.events[name] = ModelEvent(calendar, organizer=model.calendars[calendar].owner)
        for round_ in range(_ROUNDS):
            self.random.shuffle(names)
            written = names if round_ == 0 else names[: self.random.randint(1, _EVENTS)]
            for name in written:
                event = model.events[name]
                number = int(name.rpartition("-")[2])
                event.meeting_url, event.meeting_platform = LINKS[
                    number % 2 if self.random.random() < 0.8 else 3
                ]
                event.name = self.random.choice(["sync", "no 0", "no 1", "no 2"])
                event.is_deleted = self.random.random() < 0.15 and name in self.played.ids
                self.played.set_times(event, self.random.choice([60, 60, 61, 63]) + 20 * (number // 2))
            await self.played.sync(calendar, written)
            await asyncio.sleep(self.random.random() * 0.01)

    async def write_hosted(self) -> None:
        model = self.played.model
        for number in range(_ROUNDS):
            name = f"{LOCAL}-{number % 2}"
            event = model.events.setdefault(name, ModelEvent(LOCAL, name="sync"))
            event.meeting_url, event.meeting_platform = LINKS[number % 2]
            self.played.set_times(event, self.random.choice([60, 61]))
            await self.played.write(name)

    async def put_rules(self) -> None:
        for number in range(_ROUNDS):
            body = _rules(number).as_json()
            response = await self.played.api.put("/api/v1/join_rules", json=body)
            assert response.status_code == 200, response.text
            await asyncio.sleep(self.random.random() * 0.02)

    async def put_calendar_rules(self) -> None:
        path = f"/api/v1/calendars/{self.played.ids['cal1']}/join_rules"
        for number in range(_ROUNDS):
            if number % 3 == 2:
                response = await self.played.api.delete(path)
            else:
                response = await self.played.api.put(path, json=_rules(number + 1).as_json())
            assert response.status_code == 200, response.text
            await asyncio.sleep(self.random.random() * 0.02)

    async def set_policies(self) -> None:
        model = self.played.model
        for number in range(_ROUNDS):
            found = [name for name in self.played.ids if name.startswith(("cal0-", "cal2-"))]
            if found:
                name, policy = self.random.choice(found), ("never", "rules")[number % 2]
                path = f"/api/v1/calendar_events/{self.played.ids[name]}/bot_policy"
                response = await self.played.api.put(path, json={"policy": policy})
                assert response.status_code == 200, response.text
                model.events[name].policy = policy  # type: ignore[assignment] # one of the two
            await asyncio.sleep(self.random.random() * 0.02)

    async def look(self) -> None:
        """Lists and previews meanwhile."""
        while not self.is_over:
            for response in (
                await self.played.api.get("/api/v1/bots"),
                await self.played.api.post("/api/v1/join_rules/preview", json=_rules(1).as_json()),
            ):
                assert response.status_code == 200, response.text
            await asyncio.sleep(0.005)

    async def work(self) -> None:
        while not self.is_over:
            await self.played.apply(1)
            await asyncio.sleep(0.002)

    async def run(self) -> None:
        others = [asyncio.create_task(one) for one in (self.look(), self.work(), self.work())]
        tasks: list[Callable[[], Awaitable[None]]] = [
            lambda: self.write_events("cal0"),
            lambda: self.write_events("cal1"),
            lambda: self.write_events("cal2"),
            self.write_hosted,
            self.put_rules,
            self.put_calendar_rules,
            self.set_policies,
        ]
        try:
            async with asyncio.timeout(120):
                await asyncio.gather(*(one() for one in tasks))
        finally:
            self.is_over = True
            done = await asyncio.gather(*others, return_exceptions=True)
        assert [one for one in done if one is not None] == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
async def test_calendars_that_are_written_at_once_end_as_one_after_the_other(new_project, seed: int) -> None:
    async with new_project() as played:
        storm = Storm(played, seed)
        await storm.run()
        await played.apply_all()
        # Of requests at the same time, the last to be committed counts: the service says which.
        played.model.rules = _read(await played.api.get("/api/v1/join_rules"))
        # The last round of calendar rules is a DELETE.
        assert played.model.calendars["cal1"].rules is None
        assert not (faults := played.model.faults(await played.as_wanted(), utcnow())), faults
        await played.check_announcements()


@pytest.mark.parametrize("change", ["delete", "reconnect"])
async def test_rules_are_put_while_a_calendar_is_deleted_or_connected_again(
    new_project, engine, change: str
) -> None:
    """The request that applies the rules waits for that change, and does not fail with it."""
    async with new_project() as played:
        await played.put_rules(_rules(1))
        await played.add(0, 60, 0, {})
        if change == "reconnect":
            await played.disconnect(1)
        async with engine.connect() as other:
            await other.execute(
                text("SELECT FROM calendars WHERE id = :id FOR UPDATE"), {"id": played.ids["cal1"]}
            )
            if change == "delete":
                await other.execute(text("DELETE FROM calendars WHERE id = :id"), {"id": played.ids["cal1"]})
            else:
                await other.execute(
                    text("UPDATE calendars SET state = 'connected' WHERE id = :id"),
                    {"id": played.ids["cal1"]},
                )
            putting = asyncio.create_task(played.api.put("/api/v1/join_rules", json=_rules(2).as_json()))
            await asyncio.wait([putting], timeout=1)
            await other.commit()
        response = await putting
        assert response.status_code == 200, response.text


def _read(response) -> Rules:
    assert response.status_code == 200, response.text
    body = response.json()
    rules = tuple(Rule(one["name"], one["when"], one["join"], one.get("bot")) for one in body["rules"])
    return Rules(rules, body["bot_scope"])
