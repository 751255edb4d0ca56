"""Requests and answers about calendars (docs/reference/http-api.md, "Calendars")."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WrapValidator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from app.api.fields import (
    ClientId,
    DeduplicationKey,
    EmailAddress,
    Locale,
    PersonName,
    PlatformUuid,
    Secret,
    TimeZoneName,
    Title,
)
from app.api.pages import ListQuery, ShortText
from app.api.schemas import (
    NOT_BLANK,
    InputModel,
    Metadata,
    NotNull,
    OutputTime,
    Trimmed,
    UpdateModel,
    shape,
)
from app.models.calendar import Platform, State

_CalendarName = Annotated[Title, Field(max_length=300), Trimmed]
_MailboxId = Annotated[str, Field(min_length=1, max_length=100), Trimmed, shape(pattern=NOT_BLANK)]
_FeedUrl = Annotated[
    str,
    Field(min_length=1, max_length=4096, examples=["https://example.com/secret.ics"]),
    Trimmed,
    shape(format="uri", pattern=r"^\s*([Hh][Tt][Tt][Pp][Ss]?|[Ww][Ee][Bb][Cc][Aa][Ll][Ss]?)://"),
]


class ProviderCalendarCreate(InputModel):
    """A calendar of a Google or Microsoft account."""

    platform: Literal["google", "microsoft"]
    client_id: ClientId = Field(description="Your OAuth client's id.")
    client_secret: Secret = Field(description="Your OAuth client's secret. Stored encrypted, never shown.")
    refresh_token: Secret = Field(description="What the account granted. Stored encrypted, never shown.")
    platform_uuid: PlatformUuid | None = Field(
        default=None, description="The provider's id of the calendar; null: the primary one."
    )
    metadata: Metadata | None = Field(default=None, description="Comes back in answers and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(default=None, description="Unique in the project.")


class SharedCalendarCreate(InputModel):
    """Another calendar of an account that is connected already."""

    credentials_of: Annotated[ShortText, Trimmed] = Field(
        description="The id of a calendar of the same account: its credentials are used for both.",
        examples=["cal_h3Gk29sLqPzX81Ab"],
    )
    platform: Literal["google", "microsoft"] | None = Field(default=None, description="The same as there.")
    platform_uuid: PlatformUuid | None = Field(
        default=None,
        description="The provider's id of the calendar, see `remote_calendars`; null: the primary one.",
    )
    metadata: Metadata | None = Field(default=None, description="Comes back in answers and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(default=None, description="Unique in the project.")


class FeedCalendarCreate(InputModel):
    """Any calendar that has a (secret) iCal address."""

    platform: Literal["ics"]
    feed_url: _FeedUrl = Field(
        description="The address; webcal:// means https. It is a secret: stored encrypted, never shown."
    )
    metadata: Metadata | None = Field(default=None, description="Comes back in answers and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(default=None, description="Unique in the project.")


class LocalCalendarCreate(InputModel):
    """A calendar that is hosted here."""

    platform: Literal["local"]
    name: _CalendarName
    owner_email: EmailAddress = Field(description="The organizer of its events; answers are mailed there.")
    owner_name: PersonName | None = None
    timezone: TimeZoneName = Field(default="UTC", examples=["Europe/Paris"])
    locale: Locale = Field(
        default="en",
        description="Language of its mails, a tag such as `fr` or `fr-CA`; all but French are English yet.",
    )
    sending_identity: _MailboxId | None = Field(
        default=None,
        description="Id of the Messages mailbox that invitations are sent from; the owner must be its sender or "
        "admin. Default: the mailbox whose address is the owner's, if there is one; null: none.",
    )
    metadata: Metadata | None = Field(default=None, description="Comes back in answers and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(default=None, description="Unique in the project.")


_CREATE_MODELS: dict[Any, type[ProviderCalendarCreate | FeedCalendarCreate | LocalCalendarCreate]] = {
    "google": ProviderCalendarCreate,
    "microsoft": ProviderCalendarCreate,
    "ics": FeedCalendarCreate,
    "local": LocalCalendarCreate,
}


def _faults(model: str, sentences: Mapping[str, str]) -> ValidationError:
    """Field names with what is wrong with them, as a validator may raise it."""
    faults: list[InitErrorDetails] = [
        {"type": PydanticCustomError("refused", sentence), "loc": (field,), "input": None}
        for field, sentence in sentences.items()
    ]
    return ValidationError.from_exception_data(model, faults)


def _by_platform(
    value: Any, _handler: Any
) -> ProviderCalendarCreate | SharedCalendarCreate | FeedCalendarCreate | LocalCalendarCreate:
    """Like a tagged union, except that errors name the field alone and not the platform before it."""
    if not isinstance(value, Mapping):
        return ProviderCalendarCreate.model_validate(value)  # says that it is not an object
    if "credentials_of" in value:
        return SharedCalendarCreate.model_validate(value)
    platform = value.get("platform")
    model = _CREATE_MODELS.get(platform) if isinstance(platform, str) else None
    if model is None:
        fault = (
            "This field is required" if platform is None else "No calendar of this platform can be connected"
        )
        sentences = {"platform": f"{fault}: use google, microsoft, ics or local."}
        if platform is None and not value.keys() - ProviderCalendarCreate.model_fields.keys():
            # Nothing says that it is a feed or local: all that an account's calendar needs is named at once.
            missing = [
                name for name in ("client_id", "client_secret", "refresh_token") if value.get(name) is None
            ]
            sentences |= dict.fromkeys(missing, "This field is required.")
        raise _faults("CalendarCreate", sentences)
    return model.model_validate(value)


CalendarCreate = Annotated[
    ProviderCalendarCreate | SharedCalendarCreate | FeedCalendarCreate | LocalCalendarCreate,
    WrapValidator(_by_platform),
]

_FIXED = {"platform", "client_id", "platform_uuid", "deduplication_key", "owner_email"}


class CalendarUpdate(UpdateModel):
    """What can be changed. Any of the secrets reconnects the calendar; a secret that is left out stays."""

    client_secret: Secret | None = Field(default=None, description="google and microsoft.")
    refresh_token: Secret | None = Field(default=None, description="google and microsoft.")
    feed_url: _FeedUrl | None = Field(default=None, description="ics: the feed's new address.")
    metadata: Metadata | None = Field(default=None, description="Replaces the old; null removes it.")
    name: Annotated[_CalendarName | None, NotNull] = Field(default=None, description="local.")
    owner_name: PersonName | None = Field(default=None, description="local.")
    timezone: Annotated[TimeZoneName | None, NotNull] = Field(
        default=None, description="local: for new events."
    )
    locale: Annotated[Locale | None, NotNull] = Field(
        default=None, description="local: language of its mails."
    )
    sending_identity: _MailboxId | None = Field(
        default=None, description="local: id of a mailbox that the owner may send from; null: none."
    )

    @model_validator(mode="before")
    @classmethod
    def _fixed(cls, value: Any) -> Any:
        fixed = [name for name in value if name in _FIXED] if isinstance(value, Mapping) else []
        if fixed:
            raise _faults(cls.__name__, dict.fromkeys(fixed, "This field is fixed once the calendar exists."))
        return value


class CalendarsQuery(ListQuery):
    deduplication_key: ShortText | None = None
    state: State | None = None
    platform: Platform | None = None
    failing: bool | None = Field(
        default=None,
        description="true: connected ones with a `sync_failure` or `sync_failing_since`; false: the others.",
    )


class SendingIdentity(BaseModel):
    """The mailbox that invitations of a local calendar are sent from."""

    mailbox_id: str
    email: str
    name: str | None


class SyncFailure(BaseModel):
    """Why the last sync failed, while the calendar stays connected."""

    code: str = Field(
        description="A stable word. `platform_outage`: many calendars of the platform (of the feed's host) fail alike; "
        "this one is not asked for until it answers again.",
        examples=["timeout"],
    )
    message: str = Field(description="A sentence for people; may change.")
    count: int = Field(description="Failed syncs since the last success, save those that were asked for.")
    next_attempt_at: OutputTime = Field(description="The latest time of the next attempt.")


class CalendarRead(BaseModel):
    """A calendar. Secrets and tokens are never shown."""

    id: str = Field(examples=["cal_h3Gk29sLqPzX81Ab"])
    platform: Platform
    client_id: str | None = Field(description="google and microsoft.")
    platform_uuid: str | None
    state: State
    metadata: dict[str, Any] | None
    deduplication_key: str | None
    connection_failure_data: dict[str, Any] | None = Field(
        description='Why the calendar was disconnected: {"error", "code", "timestamp"}.'
    )
    created_at: OutputTime
    updated_at: OutputTime
    last_successful_sync_at: OutputTime | None
    last_attempted_sync_at: OutputTime | None
    sync_failing_since: OutputTime | None = Field(
        description="When the first of the syncs that have failed since the last success was; null: all is well."
    )
    sync_failure: SyncFailure | None = Field(description="What is wrong at the moment; null: nothing.")
    name: str | None
    owner_email: str | None
    owner_name: str | None
    timezone: str | None
    locale: str | None = Field(description="Of a local calendar: language of its mails.")
    sending_identity: SendingIdentity | None


class RemoteCalendarRead(BaseModel):
    """A calendar that the account has at the provider."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="What a calendar's `platform_uuid` may be set to.")
    name: str
    is_primary: bool


class RemoteCalendarsRead(BaseModel):
    """All of them in one page."""

    next: None = None
    previous: None = None
    results: list[RemoteCalendarRead]


class SyncQueued(BaseModel):
    status: Literal["queued"] = "queued"
