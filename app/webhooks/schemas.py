"""Requests and responses about webhooks."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.api.pages import ListQuery
from app.api.schemas import (
    WEB_ADDRESS,
    InputModel,
    InputTime,
    NotBlank,
    OutputTime,
    TimeText,
    UpdateModel,
    shape,
)
from app.webhooks.payloads import TRIGGERS, Trigger

DeliveryStatus = Literal["pending", "success", "failed"]

_LONGEST_URL = 2000


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

_EXAMPLE: JsonDict = {
    "url": "https://example.com/webhooks",
    "triggers": ["calendar.events_update", "calendar.state_change"],
}


class WebhookCreate(InputModel):
    """An endpoint, and the changes that are sent to it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    url: _Url
    triggers: _Triggers
    is_active: _IsActive = True
    include_events: _IncludeEvents = False


class WebhookUpdate(UpdateModel):
    """What is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"is_active": True}]})

    url: _Url = ""
    triggers: _Triggers = Field(default_factory=list)
    is_active: _IsActive = True
    include_events: _IncludeEvents = False


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


class DeliveryRead(BaseModel):
    """A message to the endpoint, and how its delivery went."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["dlv_h3Gk29sLqPzX81Ab"])
    trigger: Trigger
    status: DeliveryStatus
    idempotency_key: str = Field(description="In the body and in the `webhook-id` header of every attempt.")
    calendar_id: str | None
    created_at: OutputTime
    next_attempt_at: OutputTime | None = Field(description="null: no further attempt is planned.")
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
