"""Requests and responses about bots (docs/reference/http-api.md, "Bots")."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from app.api.fields import DeduplicationKey
from app.api.pages import ListQuery, ShortText
from app.api.schemas import (
    NOT_BLANK,
    WEB_ADDRESS,
    InputModel,
    InputTime,
    Metadata,
    NotNull,
    OutputTime,
    TimeText,
    Trimmed,
    UpdateModel,
    shape,
)
from app.bots.runner import LONGEST_NAME, check_name, check_setting, drop_nulls
from app.bots.words import AskedState, ShownEntryType, ShownState

_LONGEST_URL = 4096
_OPTIONAL_TEXTS = ("calendar_event_id", "meeting_url", "join_at", "deduplication_key")
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


BotName = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME, examples=["Notetaker"]),
    AfterValidator(check_name),
    Trimmed,
    shape(pattern=NOT_BLANK),
]
_MeetingUrl = Annotated[
    str,
    Field(min_length=1, max_length=_LONGEST_URL, examples=["https://zoom.us/j/5551112222"]),
    AfterValidator(_web_address),
    Trimmed,
    shape(format="uri", pattern=WEB_ADDRESS),
]
_EventId = Annotated[ShortText, Trimmed]
BotSettings = Annotated[
    dict[str, Any],
    AfterValidator(check_setting),
    Field(description="Handed to the runner as they are, save nulls, which are left out; never shown."),
]
BotMetadata = Annotated[Metadata | None, Field(description="Comes back in responses and webhooks.")]

_EXAMPLE: JsonDict = {
    "calendar_event_id": "evt_h3Gk29sLqPzX81Ab",
    "bot_name": "Notetaker",
    "deduplication_key": "evt_h3Gk29sLqPzX81Ab",
    "metadata": {"user_id": "42"},
}


class _BotInput(InputModel):
    """Base of create and update: undeclared fields are settings, and "" leaves out an optional text."""

    model_config = ConfigDict(extra="allow")
    # pydantic checks the fields that are not declared, too.
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(check_setting)]]

    @model_validator(mode="before")
    @classmethod
    def _without_empty_texts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        empty = {
            name for name in _OPTIONAL_TEXTS if isinstance(value.get(name), str) and not value[name].strip()
        }
        if not value.get("calendar_event_id") or "calendar_event_id" in empty:
            # Without an event and a time a bot joins at once. An empty time must not lead to that by mistake.
            empty.discard("join_at")
        return {name: item for name, item in value.items() if name not in empty}

    @property
    def further_settings(self) -> dict[str, Any]:
        """The fields that are not listed here, null for a setting that is to be left out."""
        return self.model_extra or {}


class BotCreate(_BotInput):
    """A bot for an event of a calendar, or for a `meeting_url`.

    Any further field (`recording_settings` and the like) is kept in `bot_settings`.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    bot_name: BotName
    calendar_event_id: _EventId | None = Field(
        default=None, description="The event to follow; `meeting_url` and `join_at` are then the event's."
    )
    meeting_url: _MeetingUrl | None = Field(
        default=None, description="Without `calendar_event_id`: required."
    )
    join_at: InputTime | None = Field(default=None, description="Left out without `calendar_event_id`: now.")
    metadata: BotMetadata = None
    deduplication_key: DeduplicationKey | None = Field(
        default=None, description="Unique among the project's bots that are not finished."
    )
    bot_settings: BotSettings | None = None

    def all_settings(self) -> dict[str, Any]:
        """`bot_settings` and the further fields."""
        settings: dict[str, Any] = drop_nulls({**(self.bot_settings or {}), **self.further_settings})
        return settings


class BotUpdate(_BotInput, UpdateModel):
    """What is left out stays as it is. `metadata` can always be changed, the rest of a scheduled bot only.

    A further field replaces that one of `bot_settings`; null removes it.
    """

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"bot_name": "Notetaker of the team"}]}
    )

    bot_name: BotName = ""
    calendar_event_id: _EventId | None = Field(default=None, description="Another event to follow.")
    meeting_url: _MeetingUrl = Field(default="", description="Not of a bot that follows an event.")
    join_at: Annotated[InputTime | None, NotNull] = Field(
        default=None, description="Not of a bot that follows an event."
    )
    metadata: BotMetadata = None
    deduplication_key: DeduplicationKey | None = Field(default=None, description="null: none.")
    bot_settings: BotSettings = Field(default_factory=dict, description="Replaces the old.")

    @field_validator("join_at")
    @classmethod
    def _join_at_given(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("This field may not be null.")
        return value

    def given(self) -> dict[str, Any]:
        """The fields that were given, without the further ones."""
        names = self.model_fields_set & type(self).model_fields.keys()
        return {name: getattr(self, name) for name in names}


class BotsQuery(ListQuery):
    """Filters of bots. `_gte` and `_lte` include the time itself, `_after` and `_before` do not."""

    state: AskedState | None = None
    states: list[AskedState] = Field(default=[], max_length=30, description="Any of these; may be repeated.")
    calendar_event_id: ShortText | None = None
    deduplication_key: ShortText | None = None
    meeting_url: Annotated[str, Field(max_length=_LONGEST_URL)] | None = None
    join_at_gte: InputTime | None = None
    join_at_lte: InputTime | None = None
    join_at_after: InputTime | None = None
    join_at_before: InputTime | None = None


class BotEntryRead(BaseModel):
    """One entry of a bot's log."""

    type: ShownEntryType
    sub_type: str | None = Field(description="Of `fatal_error`: why.", examples=["runner_refused"])
    metadata: dict[str, Any] | None = Field(description="What changed, or the runner's response.")
    created_at: TimeText


class BotRead(BaseModel):
    """A bot."""

    id: str = Field(examples=["bot_h3Gk29sLqPzX81Ab"])
    metadata: dict[str, Any] | None
    meeting_url: str | None = Field(description="null: the event has no link at the moment.")
    bot_name: str
    state: ShownState = Field(
        description="`staged`: being handed over to the runner. `joining`: handed over."
    )
    events: list[BotEntryRead] = Field(description="Its first entry and the last ones, oldest first.")
    transcription_state: Literal["not_started"] = Field(description="The runner knows more.")
    recording_state: Literal["not_started"] = Field(description="The runner knows more.")
    join_at: OutputTime
    deduplication_key: str | None
    calendar_event_id: str | None
    created_at: OutputTime
    updated_at: OutputTime
