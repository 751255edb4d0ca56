"""Requests and answers about bots (contract 5)."""

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from app.api.pages import ListQuery, ShortText
from app.api.schemas import (
    WEB_ADDRESS,
    InputModel,
    InputTime,
    Metadata,
    NotBlank,
    NotNull,
    OutputTime,
    TimeText,
    UpdateModel,
    shape,
)
from app.bots.lifecycle import EntryType, State
from app.calendars.schemas import DeduplicationKey

_LONGEST_URL = 4096
_WITH_HOST = re.compile(r"https?://[^/?#\\]", re.IGNORECASE)


def _web_address(value: str) -> str:
    if not value.isprintable() or " " in value:
        raise ValueError("A URL has no spaces and no control characters.")
    if not _WITH_HOST.match(value):
        raise ValueError("Must be a full http or https URL, for example https://zoom.us/j/5551112222.")
    try:
        AnyHttpUrl(value)
    except ValidationError:
        raise ValueError("Not a valid URL.") from None
    return value


_BotName = Annotated[NotBlank, Field(min_length=1, max_length=300, examples=["Notetaker"])]
_MeetingUrl = Annotated[
    NotBlank,
    Field(min_length=1, max_length=_LONGEST_URL, examples=["https://zoom.us/j/5551112222"]),
    AfterValidator(_web_address),
    shape(format="uri", pattern=WEB_ADDRESS),
]
_BotSettings = Annotated[dict[str, Any], Field(description="Handed to the runner as they are; never shown.")]
_BotMetadata = Annotated[Metadata | None, Field(description="Comes back in answers and webhooks.")]

_EXAMPLE: JsonDict = {
    "calendar_event_id": "evt_h3Gk29sLqPzX81Ab",
    "bot_name": "Notetaker",
    "deduplication_key": "evt_h3Gk29sLqPzX81Ab",
    "metadata": {"user_id": "42"},
}


class BotCreate(InputModel):
    """A bot for an event of a calendar, or for a meeting given by hand.

    Any further field (`recording_settings` and the like) is kept in `bot_settings`.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    bot_name: _BotName
    calendar_event_id: ShortText | None = Field(
        default=None, description="The event to follow; `meeting_url` and `join_at` are then the event's."
    )
    meeting_url: _MeetingUrl | None = Field(
        default=None, description="Without `calendar_event_id`: required."
    )
    join_at: InputTime | None = Field(default=None, description="Without `calendar_event_id`: required.")
    metadata: _BotMetadata = None
    deduplication_key: DeduplicationKey | None = Field(
        default=None, description="Unique among the project's bots that are not finished."
    )
    bot_settings: _BotSettings | None = None

    def all_settings(self) -> dict[str, Any]:
        """`bot_settings` and the further fields."""
        return {**(self.bot_settings or {}), **(self.model_extra or {})}


class BotUpdate(UpdateModel):
    """What is left out stays as it is. `metadata` can always be changed, the rest of a scheduled bot only."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"bot_name": "Notetaker of the team"}]})

    bot_name: _BotName = ""
    meeting_url: _MeetingUrl = Field(default="", description="Not of a bot that follows an event.")
    join_at: Annotated[InputTime | None, NotNull] = Field(
        default=None, description="Not of a bot that follows an event."
    )
    metadata: _BotMetadata = None
    bot_settings: _BotSettings = Field(default_factory=dict, description="Replaces the old.")
    calendar_event_id: SkipJsonSchema[Any] = None
    deduplication_key: SkipJsonSchema[Any] = None

    @field_validator("calendar_event_id", "deduplication_key")
    @classmethod
    def _fixed(cls, _value: Any) -> None:
        raise ValueError("This field is fixed once the bot exists.")

    @field_validator("join_at")
    @classmethod
    def _join_at_given(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("This field may not be null.")
        return value


class BotsQuery(ListQuery):
    """`join_at_gte` and `join_at_lte` include the time itself, `join_at_after` and `join_at_before` do not."""

    state: State | None = None
    states: list[State] = Field(default=[], max_length=10, description="Any of these; may be repeated.")
    calendar_event_id: ShortText | None = None
    deduplication_key: ShortText | None = None
    meeting_url: Annotated[str, Field(max_length=_LONGEST_URL)] | None = None
    join_at_gte: InputTime | None = None
    join_at_lte: InputTime | None = None
    join_at_after: InputTime | None = None
    join_at_before: InputTime | None = None


class BotEntryRead(BaseModel):
    """One entry of a bot's log."""

    type: EntryType
    sub_type: str | None = Field(description="Of `fatal_error`: why.", examples=["runner_refused"])
    metadata: dict[str, Any] | None = Field(description="What changed, or what the runner answered.")
    created_at: TimeText


class BotRead(BaseModel):
    """A bot."""

    id: str = Field(examples=["bot_h3Gk29sLqPzX81Ab"])
    metadata: dict[str, Any] | None
    meeting_url: str | None = Field(description="null: the event has no link at the moment.")
    bot_name: str
    state: State
    join_at: OutputTime
    deduplication_key: str | None
    calendar_event_id: str | None
    events: list[BotEntryRead] = Field(description="Its first entry and the last ones, oldest first.")
    created_at: OutputTime
    updated_at: OutputTime
