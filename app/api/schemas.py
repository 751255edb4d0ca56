"""Base classes of request bodies, shared field types, and the error responses of the OpenAPI document."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, ValidationError

from app.core.clock import isoformat

_MAX_DEPTH = 20


def _unstorable(value: Any, depth: int = 0) -> str | None:
    """Return a sentence that says why PostgreSQL cannot store this value, or None."""
    if depth > _MAX_DEPTH:
        return f"Nested deeper than {_MAX_DEPTH} levels."
    if isinstance(value, str):
        if "\x00" in value:
            return "NUL characters are not allowed."
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return "Not valid Unicode: it has half of a surrogate pair."
    elif isinstance(value, Mapping):
        for key, item in value.items():
            fault = _unstorable(key, depth + 1) or _unstorable(item, depth + 1)
            if fault:
                return fault
    elif isinstance(value, list):
        for item in value:
            fault = _unstorable(item, depth + 1)
            if fault:
                return fault
    elif isinstance(value, int) and value.bit_length() > 63:
        return "A number is too large."
    elif isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):  # noqa: PLR0124 - NaN
        return "Not a JSON number."
    return None


class InputModel(BaseModel):
    """A request body.

    Types are strict, unknown fields are errors, and every value can be stored in PostgreSQL.
    """

    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=False)

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        faults = [
            InitErrorDetails(
                type=PydanticCustomError("unstorable", "{fault}", {"fault": fault}), loc=(name,), input=None
            )
            for name, item in value.items()
            if (fault := _unstorable(item) or _unstorable(name))
        ]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Move defaults into the descriptions. Generated clients would send a `default`, or require the field."""
        schema = handler(core_schema)
        for field in handler.resolve_ref_schema(schema).get("properties", {}).values():
            default = field.pop("default", None)
            if default not in (None, "", [], {}) and not issubclass(cls, UpdateModel):
                words = f"Default: `{orjson.dumps(default).decode()}`."
                field["description"] = f"{field.get('description', '')} {words}".strip()
        return schema


class UpdateModel(InputModel):
    """The body of a PATCH. A default only means that the field may be left out, and then stays unchanged."""


def not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("This field may not be blank.")
    return value


def shape(**members: Any) -> Any:
    """Add members to the JSON schema. The field's own validator enforces them, with a clearer message."""
    return Field(json_schema_extra=members)


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an optional value for a field that may be left out but not be null."""
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    if len(options) != 1:
        return schema
    return {**options[0], **{name: value for name, value in schema.items() if name != "anyOf"}}


def _drop_null(schema: dict[str, Any]) -> None:
    changed = without_null(schema)
    schema.clear()
    schema.update(changed)


# For a field of a PATCH whose None means "left out". The service refuses null.
NotNull: Any = Field(json_schema_extra=_drop_null)
NOT_BLANK = r"\S"
WEB_ADDRESS = r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#:@\\\s]\S*$"
NotBlank = Annotated[str, AfterValidator(not_blank), shape(pattern=NOT_BLANK)]


def _as_text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if isinstance(value, str) else value


# For keys, ids, names and secrets, as Attendee reads them: numbers become text, and surrounding white space is removed.
# It must come last in an Annotated, so that the other validators see the text.
Trimmed = BeforeValidator(_as_text)


def _parse_time(value: Any) -> datetime:
    if isinstance(value, datetime):
        at = value
    elif isinstance(value, str) and len(value) <= 40:
        # A "+" in a query is decoded to a space.
        text = value.strip().replace(" ", "T" if value.count(" ") == 1 and "T" not in value else "+")
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("Not a date and time: use ISO 8601, for example 2026-01-31T09:00:00Z.") from None
    else:
        raise ValueError("Not a date and time: use ISO 8601, for example 2026-01-31T09:00:00Z.")
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError:
        raise ValueError("The date is out of range.") from None


# Any offset is accepted. A time without one is read as UTC (docs/reference/http-api.md, "Times").
InputTime = Annotated[datetime, BeforeValidator(_parse_time)]
_TIME_SCHEMA = {"type": "string", "format": "date-time", "examples": ["2026-01-31T09:00:00.000000Z"]}
OutputTime = Annotated[
    datetime,
    PlainSerializer(isoformat, return_type=str),
    WithJsonSchema(_TIME_SCHEMA, mode="serialization"),
]
# The same type for a time that is already text.
TimeText = Annotated[str, WithJsonSchema(_TIME_SCHEMA)]


def check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Check that it has at least one key, only strings as values, and at most 1,000 characters as JSON.

    See docs/reference/http-api.md, "Input".
    """
    if not value:
        raise ValueError("Must have at least one key.")
    for key, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f"The value of {key!r} must be a string.")  # noqa: TRY004 - pydantic wants ValueError
    if len(orjson.dumps(value).decode()) > 1000:
        raise ValueError("Longer than 1000 characters as JSON.")
    return value


Metadata = Annotated[
    dict[str, Any],
    AfterValidator(check_metadata),
    shape(
        additionalProperties={"type": "string"},
        minProperties=1,
        examples=[{"user_id": "42"}],
    ),
]


# The names of these classes are names in the OpenAPI document, which generated clients use. So they stay, although
# elsewhere the word is "response".
class ErrorAnswer(BaseModel):
    """An error that is not about single fields."""

    error: str = Field(description="A sentence for people. It may change.", examples=["Calendar not found"])


class DetailAnswer(BaseModel):
    """An error of authentication."""

    detail: str = Field(
        description="A sentence for people. It may change.",
        examples=["This API key is not known or has been disabled."],
    )


class FieldErrors(BaseModel):
    """Field names, each with a list of sentences. `non_field_errors` is about the whole body."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"name": ["Not a string."]}]})
    __pydantic_extra__: dict[str, list[str]]


def responses(*codes: int, takes_input: bool = True) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's error responses: 401, 503, the given codes, and 400 if the operation takes input."""
    known: dict[int, tuple[str, Any]] = {
        400: ("Bad input: FieldErrors for a body, ErrorAnswer for a query", ErrorAnswer | FieldErrors),
        401: ("The API key is missing, wrong or disabled", DetailAnswer),
        404: ("There is no such object in this project", ErrorAnswer),
        409: ("The Idempotency-Key was used with another body", ErrorAnswer),
        413: ("The body is too large", ErrorAnswer),
        415: ("The body's type is not supported", ErrorAnswer),
        429: ("Too many requests; see Retry-After", ErrorAnswer),
        502: ("A service that this call depends on failed", ErrorAnswer),
        503: ("The service is busy or restarting; see Retry-After", ErrorAnswer),
    }
    return {
        code: {"description": known[code][0], "model": known[code][1]}
        for code in sorted({401, 503, *codes} | ({400} if takes_input else set()))
    }
