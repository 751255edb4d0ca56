"""Requests and responses about join rules (docs/reference/http-api.md, "Join rules")."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from app.api.schemas import NOT_BLANK, InputModel, not_blank, shape
from app.bots.runner import check_setting
from app.bots.schemas import BotMetadata, BotName, BotSettings
from app.meeting_links.platforms import PLATFORMS
from app.models.join_rule import BotScope, Policy

# The values of the fields of events (app/events/data.py).
_ResponseStatus = Literal["needs_action", "accepted", "tentative", "declined"]
_Visibility = Literal["default", "public", "private", "confidential"]

_MOST_RULES = 100
_MOST_PARTS = 50
_MOST_ATTENDEES = 1_000_000
# All rules of a project are read in each transaction that writes events.
_MOST_CHARACTERS = 100_000
_OF_THE_EVENT = ("calendar_event_id", "meeting_url", "join_at")


def _known_platform(value: str) -> str:
    if value not in PLATFORMS:
        raise ValueError(f"Not a meeting platform that is known here: {', '.join(sorted(PLATFORMS))}.")
    return value


def _unless_empty(value: list[Any]) -> list[Any]:
    if not value:
        raise ValueError("An empty list would never hold: leave the condition out, or name a value.")
    return value


_Words = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(not_blank)]
_Platform = Annotated[str, AfterValidator(_known_platform), shape(enum=sorted(PLATFORMS))]
_Count = Annotated[int, Field(ge=0, le=_MOST_ATTENDEES)]
_NOT_EMPTY = AfterValidator(_unless_empty)
# The validator's sentence says more than that of a minimum length.
_AT_LEAST_ONE = shape(minItems=1)


class JoinRuleWhen(InputModel):
    """The conditions of a rule; all must hold. Without any, it always holds."""

    has_meeting_url: bool | None = None
    attendees_min: _Count | None = Field(default=None, description="At least so many `attendees`.")
    attendees_max: _Count | None = Field(default=None, description="At most so many `attendees`.")
    has_external_attendee: bool | None = Field(
        default=None,
        description="Whether an attendee or the organizer has an address of another domain than the owner's.",
    )
    response_status_in: (
        Annotated[list[_ResponseStatus], Field(max_length=4), _NOT_EMPTY, _AT_LEAST_ONE] | None
    ) = Field(
        default=None, description="The owner's reply. A declined event is joined only if `declined` is named."
    )
    is_organizer: bool | None = Field(default=None, description="Whether the owner organizes the event.")
    name_contains: (
        Annotated[list[_Words], Field(max_length=_MOST_PARTS), _NOT_EMPTY, _AT_LEAST_ONE] | None
    ) = Field(default=None, description="Any of these, in upper or lower case.")
    is_all_day: bool | None = None
    visibility_in: Annotated[list[_Visibility], Field(max_length=4), _NOT_EMPTY, _AT_LEAST_ONE] | None = None
    platforms: Annotated[list[_Platform], Field(max_length=_MOST_PARTS), _NOT_EMPTY, _AT_LEAST_ONE] | None = (
        Field(default=None, description="Values of `meeting_platform`.")
    )

    @model_validator(mode="after")
    def _range(self) -> "JoinRuleWhen":
        if (
            self.attendees_min is not None
            and self.attendees_max is not None
            and self.attendees_min > self.attendees_max
        ):
            raise ValueError("attendees_min is larger than attendees_max.")
        return self


class JoinRuleBotInput(InputModel):
    """The bot of a rule, as in `POST /bots`. Further fields are kept in `bot_settings`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(check_setting)]]

    bot_name: BotName
    metadata: BotMetadata = None
    bot_settings: BotSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_the_event(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            given = [name for name in _OF_THE_EVENT if name in value]
            if given:
                raise ValueError(f"Leave out {', '.join(given)}: a rule's bot has what its event has.")
            if "deduplication_key" in value:
                raise ValueError("Leave out deduplication_key: a rule makes one bot for each event.")
        return value


class JoinRuleInput(InputModel):
    """A rule. `bot` is required where `join` is true."""

    name: Annotated[
        str, Field(min_length=1, max_length=200, examples=["external"]), AfterValidator(not_blank)
    ] = Field(json_schema_extra={"pattern": NOT_BLANK})
    when: JoinRuleWhen = Field(default_factory=JoinRuleWhen)
    join: bool
    bot: JoinRuleBotInput | None = None

    @model_validator(mode="after")
    def _has_bot(self) -> "JoinRuleInput":
        if self.join and self.bot is None:
            raise ValueError('A rule with join true needs a bot, for example {"bot_name": "Notetaker"}.')
        return self


_EXAMPLE: JsonDict = {
    "rules": [
        {"name": "private", "when": {"visibility_in": ["private", "confidential"]}, "join": False},
        {
            "name": "external",
            "when": {"has_external_attendee": True, "response_status_in": ["accepted", "tentative"]},
            "join": True,
            "bot": {"bot_name": "Notetaker", "metadata": {"reason": "external"}},
        },
    ],
    "bot_scope": "meeting",
}


def _whole(rules: list[JoinRuleInput]) -> list[JoinRuleInput]:
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two rules have the name {twice[0]!r}: names are unique.")
    if (
        len(orjson.dumps([rule.model_dump(mode="json", exclude_unset=True) for rule in rules]).decode())
        > _MOST_CHARACTERS
    ):
        raise ValueError(f"The rules are longer than {_MOST_CHARACTERS} characters as JSON.")
    return rules


class JoinRulesInput(InputModel):
    """All rules of a project or calendar, in the order in which they are asked."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    rules: Annotated[list[JoinRuleInput], Field(max_length=_MOST_RULES), AfterValidator(_whole)]
    bot_scope: BotScope = Field(
        default="event", description="`meeting`: one bot for events of one link and overlapping times."
    )

    def stored(self) -> list[dict[str, Any]]:
        """The rules as they were given, with `when` in each."""
        return [
            {"name": rule.name, "when": {}, **rule.model_dump(mode="json", exclude_unset=True)}
            for rule in self.rules
        ]


class JoinRulesRead(BaseModel):
    """The rules of a project or calendar."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    rules: list[dict[str, Any]] = Field(description="As they were given.")
    bot_scope: BotScope


class BotPolicyInput(InputModel):
    """What decides about an event's bot."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"policy": "never"}]})

    policy: Policy = Field(
        description="`rules`: the join rules. `always`: a bot whatever they say. `never`: no bot of a rule."
    )


class BotPolicyRead(BaseModel):
    """What decides about an event's bot."""

    policy: Policy


class PreviewedMake(BaseModel):
    """An event that would get a bot."""

    calendar_event_id: str = Field(examples=["evt_h3Gk29sLqPzX81Ab"])
    rule: str = Field(description="The rule that says so.", examples=["external"])


class PreviewedRemove(BaseModel):
    """A bot that would be deleted."""

    bot_id: str = Field(examples=["bot_h3Gk29sLqPzX81Ab"])
    calendar_event_id: str = Field(examples=["evt_h3Gk29sLqPzX81Ab"])
    rule: str = Field(description="The rule that says so; if none does, the rule that made the bot.")


class JoinRulesPreviewRead(BaseModel):
    """What rules would do.

    A bot that stays, or that another event of its meeting gets, is in neither list.
    """

    make: list[PreviewedMake]
    remove: list[PreviewedRemove]
