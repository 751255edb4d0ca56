"""A model of join rules in plain Python: which bots there should be for given rules, events, policies and deletions.

It shares no code with the service. docs/join-rules.md says what it computes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

Policy = Literal["rules", "always", "never"]
Scope = Literal["event", "meeting"]

_USUAL_LENGTH = timedelta(hours=4)


@dataclass(frozen=True)
class Rule:
    """One rule. `when` and `bot` have the form of the API."""

    name: str
    when: Mapping[str, Any]
    join: bool = True
    bot: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        body = {"name": self.name, "when": dict(self.when), "join": self.join}
        return body if self.bot is None else {**body, "bot": dict(self.bot)}


@dataclass(frozen=True)
class Rules:
    """The rules of a project, or of a calendar."""

    rules: tuple[Rule, ...] = ()
    scope: Scope = "event"

    def as_json(self) -> dict[str, Any]:
        return {"rules": [rule.as_json() for rule in self.rules], "bot_scope": self.scope}


@dataclass
class ModelCalendar:
    """A calendar. `rules`: its own, which replace the project's; None: it has none."""

    owner: str
    rules: Rules | None = None
    is_connected: bool = True
    exists: bool = True


@dataclass(frozen=True)
class Meeting:
    """What a bot was for when it left for its meeting, or when a person deleted it."""

    join_at: datetime
    meeting_url: str


@dataclass
class ModelEvent:
    """An event as the API shows it, and what people and bots did to it.

    `joined`: the bots that left for it. `dismissed`: what the bot was for that a person deleted; None: no person did.
    """

    calendar: str
    start: datetime | None = None
    end: datetime | None = None
    name: str | None = None
    meeting_url: str | None = None
    meeting_platform: str | None = None
    attendees: tuple[str, ...] = ()
    organizer: str | None = None
    response_status: str | None = None
    visibility: str = "default"
    is_all_day: bool = False
    is_deleted: bool = False
    policy: Policy = "rules"
    joined: list[Meeting] = field(default_factory=list)
    dismissed: Meeting | None = None

    def overlaps(self, other: "ModelEvent") -> bool:
        """Whether two events are one meeting: the same link, and times that overlap."""
        assert self.start is not None
        assert other.start is not None
        if self.meeting_url != other.meeting_url:
            return False
        if self.start == other.start:
            return True
        return self.start < other.ends() and other.start < self.ends()

    def ends(self) -> datetime:
        """When it is over; without an end after its start, four hours after that."""
        assert self.start is not None
        return self.end if self.end is not None and self.end > self.start else self.start + _USUAL_LENGTH

    def was_joined_now(self) -> bool:
        """Whether a bot left for the event at its present time."""
        return any(one.join_at == self.start for one in self.joined)

    def is_at(self, one: Meeting) -> bool:
        """Whether this event is the meeting that a bot of another event was for."""
        assert self.start is not None
        return self.meeting_url == one.meeting_url and self.start <= one.join_at < self.ends()


@dataclass(frozen=True)
class Verdict:
    """What decides about an event: the rule, and the bot that it makes (None: no bot)."""

    rule: str | None
    bot: Mapping[str, Any] | None


@dataclass(frozen=True)
class WantedBot:
    """A scheduled bot that rules make."""

    event: str
    bot_name: str
    join_at: datetime
    meeting_url: str


@dataclass
class Model:
    """A project. Events and calendars are found by names of the test's own."""

    platforms: frozenset[str]
    rules: Rules = field(default_factory=Rules)
    calendars: dict[str, ModelCalendar] = field(default_factory=dict)
    events: dict[str, ModelEvent] = field(default_factory=dict)

    def rules_of(self, event: ModelEvent) -> Rules:
        own = self.calendars[event.calendar].rules
        return self.rules if own is None else own

    def holds(self, when: Mapping[str, Any], event: ModelEvent) -> bool:
        """Whether all conditions hold. What is not in `when` is not asked."""
        return all(self._holds(name, asked, event) for name, asked in when.items() if asked is not None)

    def _holds(self, name: str, asked: Any, event: ModelEvent) -> bool:
        owner = self.calendars[event.calendar].owner
        match name:
            case "has_meeting_url":
                return asked is (event.meeting_url is not None)
            case "attendees_min":
                return len(event.attendees) >= int(asked)
            case "attendees_max":
                return len(event.attendees) <= int(asked)
            case "has_external_attendee":
                people = [*event.attendees, *([event.organizer] if event.organizer else [])]
                return asked is any(_domain(one) != _domain(owner) for one in people)
            case "response_status_in":
                return event.response_status in asked
            case "is_organizer":
                if event.organizer is None:  # an event without other people is the owner's
                    return asked and not event.attendees
                return asked is (event.organizer.lower() == owner.lower())
            case "name_contains":
                return any(text.lower() in (event.name or "").lower() for text in asked)
            case "is_all_day":
                return asked is event.is_all_day
            case "visibility_in":
                return event.visibility in asked
            case "platforms":
                return event.meeting_platform in asked
        raise ValueError(name)

    def judge(self, event: ModelEvent) -> Verdict:
        """What the rules and the policy say, without regard to time, deletions and other events."""
        if event.policy == "never":
            return Verdict(None, None)
        rules = self.rules_of(event).rules
        decisive = next((rule for rule in rules if self.holds(rule.when, event)), None)
        joins = decisive is not None and decisive.join
        if joins and event.response_status == "declined":
            assert decisive is not None
            joins = "declined" in (decisive.when.get("response_status_in") or ())
        if joins:
            assert decisive is not None
            return Verdict(decisive.name, decisive.bot)
        if event.policy == "always":
            first = next((rule for rule in rules if rule.bot is not None), None)
            return Verdict(None, None) if first is None else Verdict(first.name, first.bot)
        return Verdict(None if decisive is None else decisive.name, None)

    def can_be_joined(self, event: ModelEvent, now: datetime) -> bool:
        return (
            not event.is_deleted
            and self.calendars[event.calendar].is_connected
            and event.start is not None
            and event.start > now
            and event.meeting_url is not None
            and event.meeting_platform in self.platforms
        )

    def candidates(self, now: datetime) -> dict[str, WantedBot]:
        """The bots of all events that want one, before one is chosen for each meeting."""
        found = {}
        for name, event in self.events.items():
            if not self.can_be_joined(event, now) or event.dismissed or event.was_joined_now():
                continue
            bot = self.judge(event).bot
            if bot is not None:
                assert event.start is not None
                assert event.meeting_url is not None
                found[name] = WantedBot(name, bot["bot_name"], event.start, event.meeting_url)
        return found

    def faults(self, actual: Iterable[WantedBot], now: datetime) -> list[str]:
        """How these scheduled bots differ from what the rules want.

        Of an event whose rules have the scope "event", exactly its own bot is wanted. Of a meeting whose events' rules
        have the scope "meeting", exactly one of the bots that its events want: none twice, and none without.
        """
        bots = list(actual)
        wanted = self.candidates(now)
        faults = [
            f"there is {bot}, wanted is {wanted.get(bot.event)}"
            for bot in bots
            if wanted.get(bot.event) != bot
        ]
        have = [bot.event for bot in bots]
        faults += [f"two bots for {name}" for name in set(have) if have.count(name) > 1]
        for name, bot in wanted.items():
            if self._scope(name) == "event":
                faults += [f"missing is {bot}"] if name not in have else []
            else:
                faults += self._faults_of_meeting(name, have)
        return faults

    def _faults_of_meeting(self, name: str, have: list[str]) -> list[str]:
        others = self._others_of_meeting(name)
        covering = [other for other in others if other in have]
        must_not, need_not = self._reasons_against(name, others)
        if name in have:
            faults = [f"two bots for one meeting: {name} and {covering}"] if covering else []
            return faults + [f"a bot too many for {name}: {reason}" for reason in must_not]
        return [] if covering or must_not or need_not else [f"no bot for the meeting of {name}"]

    def _scope(self, name: str) -> Scope:
        return self.rules_of(self.events[name]).scope

    def shared_with(self, name: str) -> list[str]:
        """The events whose deleted bot was, or would be, the bot of this event's meeting."""
        event = self.events[name]
        if self._scope(name) != "meeting" or event.start is None or event.meeting_url is None:
            return []
        overlapping = self._others_of_meeting(name)
        return [
            other
            for other, its in self.events.items()
            if its.dismissed is not None and (other in overlapping or event.is_at(its.dismissed))
        ]

    def _others_of_meeting(self, name: str) -> list[str]:
        """The live events of the same meeting whose rules have the scope "meeting"."""
        event = self.events[name]
        return [
            other
            for other, its in self.events.items()
            if other != name
            and not its.is_deleted
            and self.calendars[its.calendar].is_connected
            and its.start is not None
            and its.meeting_url is not None
            and self._scope(other) == "meeting"
            and event.overlaps(its)
        ]

    def _reasons_against(self, name: str, others: list[str]) -> tuple[list[str], list[str]]:
        """Why an event's meeting must have no scheduled bot, and why it need not have one."""
        event = self.events[name]
        must_not: list[str] = []
        need_not: list[str] = []
        for other, its in self.events.items():
            if other == name:
                continue
            if any(event.is_at(one) for one in its.joined):
                reason = f"a bot left for {other}"
                (must_not if self._scope(other) == "meeting" else need_not).append(reason)
            if its.dismissed is not None and event.policy != "always":
                # The meeting whose bot was deleted, and the one that it has become since.
                if event.is_at(its.dismissed) and self.calendars[its.calendar].exists:
                    must_not.append(f"a person deleted the bot of {other}")
                elif other in others or event.is_at(its.dismissed):
                    need_not.append(f"a person deleted the bot of {other}, which was moved or deleted")
        return must_not, need_not


def _domain(address: str) -> str:
    return address.rpartition("@")[2].lower()
