"""Requests and responses about webhooks."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from app.api.pages import ListQuery
from app.api.schemas import (
    WEB_ADDRESS,
    InputModel,
    InputTime,
    Metadata,
    NotBlank,
    OutputTime,
    TimeText,
    UpdateModel,
    shape,
)
from app.webhooks.payloads import CHANGED_FIELDS, TRIGGERS, ChangedFieldName, Trigger
from app.webhooks.repository.lanes import IN_LINE

DeliveryStatus = Literal["pending", "success", "failed"]

_LONGEST_URL = 2000
MOST_CALENDARS = 500
DEFAULT_LEAD_MINUTES = 10


def _known_once(triggers: list[str]) -> list[Trigger]:
    unknown = sorted(set(triggers).difference(TRIGGERS))
    if unknown:
        raise ValueError(f"There is no trigger {unknown[0][:50]!r}; choose from {', '.join(TRIGGERS)}.")
    return [trigger for trigger in TRIGGERS if trigger in triggers]


_Url = Annotated[
    NotBlank,
    Field(
        min_length=1,
        max_length=_LONGEST_URL,
        description="https, on a public address.",
        examples=["https://example.com/webhooks"],
    ),
    shape(format="uri", pattern=WEB_ADDRESS),
]
_Triggers = Annotated[
    list[str],
    Field(
        min_length=1,
        max_length=50,
        description="The changes that this endpoint gets.",
        json_schema_extra={"items": {"type": "string", "enum": list(TRIGGERS)}},
    ),
    AfterValidator(_known_once),
]
_IsActive = Annotated[bool, Field(description="Inactive webhooks get nothing.")]
_IncludeEvents = Annotated[
    bool, Field(description="Whether `calendar.events_update` carries the changed events in `data.events`.")
]


def _once(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _known_fields(names: list[str]) -> list[str]:
    unknown = sorted(set(names).difference(CHANGED_FIELDS))
    if unknown:
        raise ValueError(
            f"There is no changed field {unknown[0][:50]!r}; choose from {', '.join(CHANGED_FIELDS)}."
        )
    return [name for name in CHANGED_FIELDS if name in names]


_CalendarId = Annotated[str, Field(min_length=1, max_length=32)]
_CalendarIds = Annotated[
    Annotated[list[_CalendarId], Field(min_length=1, max_length=MOST_CALENDARS), AfterValidator(_once)]
    | None,
    Field(
        description="Ids of calendars of the project: only messages about these are sent. Null: about all.",
    ),
]
_MetadataFilter = Annotated[
    Metadata | None,
    Field(
        description="Only messages about calendars whose metadata has these pairs are sent. Null: about all."
    ),
]
_ChangedFields = Annotated[
    Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=50,
            json_schema_extra={"items": {"type": "string", "enum": list(CHANGED_FIELDS)}},
        ),
        AfterValidator(_known_fields),
    ]
    | None,
    Field(
        description="`event.updated` is sent only if one of these fields changed. Null: whatever changed.",
        examples=[["start_time", "end_time"]],
    ),
]
_Ordering = Annotated[
    Literal["any", "fifo"] | None,
    Field(
        description="`fifo`: the messages about one calendar are sent one at a time, in order. One that fails holds up "
        "those of its calendar until its last attempt. Applies to messages written from then on. Null: `any`."
    ),
]
_StartingSoonMinutes = Annotated[
    Annotated[int, Field(ge=1, le=1440)] | None,
    Field(description="How long before an event's start `event.starting_soon` is sent. Null: 10."),
]

_EXAMPLE: JsonDict = {
    "url": "https://example.com/webhooks",
    "triggers": ["event.created", "event.updated", "event.deleted"],
    "changed_fields": ["start_time", "end_time"],
    "ordering": "fifo",
}


class WebhookCreate(InputModel):
    """An endpoint, and the changes that are sent to it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    url: _Url
    triggers: _Triggers
    is_active: _IsActive = True
    include_events: _IncludeEvents = False
    calendar_ids: _CalendarIds = None
    metadata: _MetadataFilter = None
    changed_fields: _ChangedFields = None
    ordering: _Ordering = "any"
    starting_soon_minutes: _StartingSoonMinutes = DEFAULT_LEAD_MINUTES


class WebhookUpdate(UpdateModel):
    """What is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"is_active": True}]})

    url: _Url = ""
    triggers: _Triggers = Field(default_factory=list)
    is_active: _IsActive = True
    include_events: _IncludeEvents = False
    calendar_ids: _CalendarIds = None
    metadata: _MetadataFilter = None
    changed_fields: _ChangedFields = None
    ordering: _Ordering = None
    starting_soon_minutes: _StartingSoonMinutes = None


class ReplayRequest(InputModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"since": "2026-01-31T09:00:00Z"}]})

    since: InputTime = Field(description="Every delivery created then or later is sent again.")


class DeliveriesQuery(ListQuery):
    status: DeliveryStatus | None = None


class WebhookRead(BaseModel):
    """A webhook. Its secret is shown once, by the calls that make one."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["webhook_h3Gk29sLqPzX81Ab"])
    url: str
    triggers: list[Trigger]
    is_active: bool
    include_events: bool
    calendar_ids: list[str] | None
    metadata: dict[str, str] | None = Field(validation_alias=AliasChoices("metadata_", "metadata"))
    changed_fields: list[ChangedFieldName] | None
    ordering: Literal["any", "fifo"]
    starting_soon_minutes: int
    disabled_reason: str | None = Field(
        description="Why the service disabled it; null if it did not. PATCH is_active true to enable it again."
    )
    failing_since: OutputTime | None = Field(
        description="No attempt has succeeded since then; null: the last one did, or there was none."
    )
    created_at: OutputTime
    updated_at: OutputTime


class WebhookWithSecret(WebhookRead):
    """The only response that has the secret."""

    secret: str = Field(
        description="base64 of 32 random bytes. Standard Webhooks libraries take it as it is."
    )


class AttemptRead(BaseModel):
    """One POST to the endpoint."""

    at: TimeText
    status_code: int | None = Field(description="null: no response came.")
    duration_ms: int
    response: str | None = Field(description="The response's first 500 characters.")
    error: str | None = Field(
        description="null: success. Else a word (status, redirect, timeout, dns, tls, connection, refused, secret) "
        "and a sentence."
    )


def _without_in_line(value: datetime | None) -> datetime | None:
    return None if value == IN_LINE else value


class DeliveryRead(BaseModel):
    """A message to the endpoint, and how its delivery went."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["dlv_h3Gk29sLqPzX81Ab"])
    trigger: Trigger
    status: DeliveryStatus
    idempotency_key: str = Field(description="In the body and in the `webhook-id` header of every attempt.")
    calendar_id: str | None
    created_at: OutputTime
    next_attempt_at: Annotated[OutputTime | None, BeforeValidator(_without_in_line)] = Field(
        description="null: no further attempt is planned, or an earlier message about the calendar is sent first."
    )
    merged_into: str | None = Field(
        description="The newer delivery that also has this one's changes, if this one had not arrived yet."
    )
    attempts: list[AttemptRead] = Field(description="The last 50, oldest first.")


class DeliveryDetail(DeliveryRead):
    """A delivery with what is sent."""

    webhook_id: str
    body: str = Field(description="The exact text that is signed and sent, the same in every attempt.")
    headers: dict[str, str] = Field(
        description="Those that are the same in every attempt. `webhook-timestamp`, `webhook-signature` and "
        "`X-Webhook-Signature` come anew with each.",
        examples=[{"Content-Type": "application/json", "webhook-id": "5f1c8a3e-7b21-4c0e-9a55-0d2f6b7c8e90"}],
    )


class TestResult(AttemptRead):
    """What came back from a test."""

    status: Literal["success", "failed"]
    trigger: Trigger
    idempotency_key: str


class ReplayQueued(BaseModel):
    count: int = Field(description="How many deliveries are sent again; 10000 means that many or more.")
