"""Pure: which rule decides about an event, and with which bot.

- The first rule whose `when` holds decides. All conditions of a `when` must hold; an empty one always holds.
- A condition about something that is unknown does not hold, whichever value it asks for.
- An event that the calendar's owner declined is joined only if `response_status_in` of the deciding rule names it.
- The owner's address is the calendar's `owner_email`. Where that is unknown, it is the organizer's if the provider says
  that the owner organizes the event.
- `has_external_attendee` looks at attendees and organizer, and not at rooms. With an unknown owner, it holds if their
  addresses are of several domains: one of these is not the owner's, wherever that one is.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from app.models.join_rule import BotScope, Policy

_BOT_FIELDS = {"bot_name", "metadata", "bot_settings"}


@dataclass(frozen=True, slots=True)
class Participant:
    """An attendee; `address` is None if the provider sent none."""

    address: str | None
    is_resource: bool = False


@dataclass(kw_only=True)
class EventFacts:
    """What rules can ask about an event. What several rules may ask is worked out once. It is not changed.

    `is_own`: the provider says that the calendar's owner organizes it. `attendees` and `organizer` are only filled for
    rules that ask about people (`RuleSet.asks_people`).
    """

    name: str | None = None
    is_all_day: bool = False
    visibility: str = "default"
    response_status: str | None = None
    meeting_url: str | None = None
    meeting_platform: str | None = None
    attendees: Sequence[Participant] = ()
    organizer: str | None = None
    owner: str | None = None
    is_own: bool = False

    @cached_property
    def folded_name(self) -> str | None:
        return self.name.casefold() if self.name is not None else None

    @cached_property
    def has_external(self) -> bool | None:
        return has_external(self)


@dataclass(frozen=True, slots=True)
class RuleBot:
    """What a rule says of its bot. `digest` differs where anything of it differs."""

    bot_name: str
    metadata: dict[str, Any] | None
    bot_settings: dict[str, Any]
    digest: str


Condition = Callable[[EventFacts], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with its conditions as functions."""

    name: str
    conditions: Sequence[Condition]
    joins: bool
    joins_declined: bool
    bot: RuleBot | None

    def holds(self, event: EventFacts) -> bool:
        # A loop, because a generator for each rule and event costs more than the conditions.
        for condition in self.conditions:  # noqa: SIM110
            if not condition(event):
                return False
        return True


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of a project or calendar. `asks_people`: a rule asks about attendees or the organizer."""

    rules: Sequence[Rule]
    bot_scope: BotScope
    asks_people: bool

    @property
    def first_bot(self) -> Rule | None:
        """The first rule that has a `bot`, which `always` takes."""
        return next((rule for rule in self.rules if rule.bot is not None), None)


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule`: the one that decided, if any did. `bot`: the bot to make, None for no bot."""

    rule: Rule | None
    bot: RuleBot | None


def decide(event: EventFacts, rules: RuleSet, policy: Policy) -> Decision:
    """Return what is decided about an event. An event without a meeting link gets no bot."""
    deciding = None
    for rule in rules.rules:
        if rule.holds(event):
            deciding = rule
            break
    if policy == "never" or event.meeting_url is None:
        return Decision(deciding, None)
    is_wanted = event.response_status != "declined" or (deciding is not None and deciding.joins_declined)
    if deciding is not None and deciding.joins and is_wanted:
        return Decision(deciding, deciding.bot)
    if policy == "always" and rules.first_bot is not None:
        return Decision(rules.first_bot, rules.first_bot.bot)
    return Decision(deciding, None)


def compile_rules(rules: Sequence[Mapping[str, Any]], bot_scope: BotScope) -> RuleSet:
    """Return rules as they are stored (app/join_rules/schemas.py) in the form that judges."""
    compiled = []
    people = False
    for rule in rules:
        when = {name: value for name, value in (rule.get("when") or {}).items() if value is not None}
        people = people or not _OF_PEOPLE.isdisjoint(when)
        # What costs more is asked last.
        names = sorted(when, key=lambda name: name in _OF_PEOPLE)
        conditions = [_CONDITIONS[name](when[name]) for name in names]
        declined = "declined" in when.get("response_status_in", ())
        compiled.append(Rule(rule["name"], conditions, rule["join"], declined, _bot(rule.get("bot"))))
    return RuleSet(compiled, bot_scope, people)


def _bot(bot: Mapping[str, Any] | None) -> RuleBot | None:
    if bot is None:
        return None
    further = {name: value for name, value in bot.items() if name not in _BOT_FIELDS}
    settings = _without_nulls({**(bot.get("bot_settings") or {}), **further})
    metadata = bot.get("metadata")
    text = orjson.dumps([bot["bot_name"], metadata, settings], option=orjson.OPT_SORT_KEYS)
    return RuleBot(bot["bot_name"], metadata, settings, hashlib.sha256(text).hexdigest()[:32])


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _domain(address: str) -> str:
    return address.rpartition("@")[2].lower()


def has_external(event: EventFacts) -> bool | None:
    """Whether an address of another domain than the owner's takes part; None if that is unknown."""
    owner = event.owner or (event.organizer if event.is_own else None)
    people = [person.address for person in event.attendees if not person.is_resource]
    domains = {_domain(address) for address in [*people, event.organizer] if address and "@" in address}
    if owner is None:
        return len(domains) > 1 if domains else False
    return not domains <= {_domain(owner)}


def is_organizer(event: EventFacts) -> bool | None:
    """Whether the owner organizes the event; None if that is unknown.

    An event without organizer and attendees is the owner's.
    """
    if event.is_own:
        return True
    if event.organizer is None:
        return True if not event.attendees else None
    if event.owner is None:
        return None
    return event.organizer.lower() == event.owner.lower()


def _name_contains(parts: Sequence[str]) -> Condition:
    folded = [part.casefold() for part in parts]

    def holds(event: EventFacts) -> bool:
        name = event.folded_name
        if name is not None:
            for part in folded:
                if part in name:
                    return True
        return False

    return holds


_CONDITIONS: dict[str, Callable[[Any], Condition]] = {
    "has_meeting_url": lambda wanted: lambda event: (event.meeting_url is not None) is wanted,
    "attendees_min": lambda least: lambda event: len(event.attendees) >= least,
    "attendees_max": lambda most: lambda event: len(event.attendees) <= most,
    "has_external_attendee": lambda wanted: lambda event: event.has_external is wanted,
    "response_status_in": lambda named: lambda event: event.response_status in named,
    "is_organizer": lambda wanted: lambda event: is_organizer(event) is wanted,
    "name_contains": _name_contains,
    "is_all_day": lambda wanted: lambda event: event.is_all_day is wanted,
    "visibility_in": lambda named: lambda event: event.visibility in named,
    "platforms": lambda named: lambda event: event.meeting_platform in named,
}
_OF_PEOPLE = {"attendees_min", "attendees_max", "has_external_attendee", "is_organizer"}
