"""Requests and responses of following changes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.pages import ShortText
from app.api.schemas import InputTime
from app.calendar_events.schemas import CalendarEventRead

ChangeType = Literal["event.created", "event.updated", "event.deleted"]

MAX_WAIT_SECONDS = 30
MAX_LIMIT = 500


class FollowQuery(BaseModel):
    """From where to follow, and what. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    cursor: ShortText | None = Field(
        default=None,
        description="A `next_cursor`, or an `id` of the stream, of the same `calendar_id` or of none.",
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]*$"},
    )
    since: InputTime | None = Field(
        default=None,
        description="In place of a cursor: begin with the changes at or after this time. A time to come means now.",
    )
    calendar_id: ShortText | None = Field(
        default=None, description="Only this calendar. Without it, all calendars of the project."
    )

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for name, text in value.items():
            if "\x00" in name or (isinstance(text, str) and "\x00" in text):
                raise ValueError("NUL characters are not allowed.")
        given = {name: text for name, text in value.items() if (name, text) != ("cursor", "")}
        if "cursor" in given and "since" in given:
            sentence = "Send cursor or since, and not both."
            raise PydanticCustomError("whole_sentence", "{sentence}", {"sentence": sentence})
        return given


class ChangesQuery(FollowQuery):
    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False)] = Field(
        default=0, description="If nothing is new, how many seconds to wait for the next change."
    )
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = Field(
        default=100, description="The largest number of results."
    )


class ChangeRead(BaseModel):
    """An event that changed, as it is now."""

    model_config = ConfigDict(title="Change")

    type: ChangeType = Field(
        description="As seen from the cursor: created after it, deleted, or else updated. Treat created and updated "
        "alike: save the event."
    )
    calendar_id: str
    event: CalendarEventRead


class ChangesRead(BaseModel):
    """Changes in the order of `updated_at`, each event at most once."""

    model_config = ConfigDict(title="Changes")

    results: list[ChangeRead]
    next_cursor: str = Field(
        description="Where the next call goes on. It never expires. Store it together with what you applied.",
        examples=["AAZJ8Kt6c0BldnRfaDNHazI5c0xxUHpYODFBYk1W2hI0Vng"],
    )
    has_more: bool = Field(description="There are more changes already: call again without waiting.")
