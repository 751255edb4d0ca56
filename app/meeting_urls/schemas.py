"""Bodies of the meeting URLs API."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.api.schemas import InputModel
from app.meeting_links.extract import MAX_TEXT_LENGTH

_EXAMPLE: JsonDict = {"text": "Join at https://zoom.us/j/5551112222?pwd=abc or call +33 1 23 45 67 89."}


class ParseRequest(InputModel):
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    text: Annotated[
        str,
        Field(
            max_length=MAX_TEXT_LENGTH,
            description="The location or the description of an event, plain or HTML, or one link.",
        ),
    ]


class CandidateRead(BaseModel):
    """A link that was seen in the text."""

    url: str = Field(description="As seen.")
    unwrapped: str | None = Field(description="The link inside, where `url` is a Safe Link or the like.")
    platform: str | None = Field(description="null: not a meeting's.", examples=["zoom"])
    reason: str | None = Field(description="Why it is not a meeting's; null if it is.")


class ParseResult(BaseModel):
    """The link that an event with this text would get, and all links that were looked at."""

    meeting_url: str | None = Field(examples=["https://zoom.us/j/5551112222?pwd=abc"])
    meeting_platform: str | None = Field(examples=["zoom"])
    candidates: list[CandidateRead]
