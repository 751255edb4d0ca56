"""Requests and responses about calendars (docs/reference/http-api.md, "Calendars")."""

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
from app.calendars.errors import no_such_field
from app.models.calendar import Platform, State

_CalendarName = Annotated[Title, Field(max_length=300), Trimmed]
_MailboxId = Annotated[str, Field(min_length=1, max_length=100), Trimmed, shape(pattern=NOT_BLANK)]
_FeedUrl = Annotated[
    str,
    Field(min_length=1, max_length=4096, examples=["https://example.com/secret.ics"]),
    Trimmed,
    shape(format="uri", pattern=r"^\s*([Hh][Tt][Tt][Pp][Ss]?|[Ww][Ee][Bb][Cc][Aa][Ll][Ss]?)://"),
]


class SyncWindow(InputModel):
    """How many days back and ahead the events of a calendar are kept in sync."""

    past_days: int = Field(ge=0, le=365)
    future_days: int = Field(ge=1, le=730)


_WINDOW: Any = Field(
    default=None,
    description="The days back and ahead in which events are kept in sync. Null means those of the settings.",
    examples=[{"past_days": 7, "future_days": 180}],
)


class ProviderCalendarCreate(InputModel):
    """A calendar of a Google or Microsoft account."""

    platform: Literal["google", "microsoft"]
    client_id: ClientId = Field(description="Your OAuth client's id.")
    client_secret: Secret = Field(description="Your OAuth client's secret. Stored encrypted, never shown.")
    refresh_token: Secret = Field(
        description="The account's OAuth refresh token. Stored encrypted, never shown."
    )
    platform_uuid: PlatformUuid | None = Field(
        default=None, description="The provider's id of the calendar. Null means the primary one."
    )
    metadata: Metadata | None = Field(default=None, description="Returned in responses and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(
        default=None, description="Your own unique name for the calendar. It is unique in the project."
    )
    window: SyncWindow | None = _WINDOW


class SharedCalendarCreate(InputModel):
    """Another calendar of an account that is already connected."""

    credentials_of: Annotated[ShortText, Trimmed] = Field(
        description="The id of a calendar of the same account. Both calendars use its credentials.",
        examples=["cal_h3Gk29sLqPzX81Ab"],
    )
    platform: Literal["google", "microsoft"] | None = Field(
        default=None, description="If given, it must be the platform of that calendar."
    )
    platform_uuid: PlatformUuid | None = Field(
        default=None,
        description="The provider's id of the calendar (see `remote_calendars`). Null means the primary one.",
    )
    metadata: Metadata | None = Field(default=None, description="Returned in responses and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(
        default=None, description="Your own unique name for the calendar. It is unique in the project."
    )
    window: SyncWindow | None = _WINDOW


class FeedCalendarCreate(InputModel):
    """A calendar with an iCal address."""

    platform: Literal["ics"]
    feed_url: _FeedUrl = Field(
        description="The feed's address. `webcal://` means https. Stored encrypted, never shown."
    )
    metadata: Metadata | None = Field(default=None, description="Returned in responses and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(
        default=None, description="Your own unique name for the calendar. It is unique in the project."
    )
    window: SyncWindow | None = _WINDOW


class LocalCalendarCreate(InputModel):
    """A calendar that is hosted here."""

    platform: Literal["local"]
    name: _CalendarName
    owner_email: EmailAddress = Field(
        description="The organizer of its events. Guests' replies are mailed to this address."
    )
    owner_name: PersonName | None = None
    timezone: TimeZoneName = Field(default="UTC", examples=["Europe/Paris"])
    locale: Locale = Field(
        default="en",
        description="The language of its mails, as a tag such as `fr` or `fr-CA`. Mails are in French or English; "
        "all other languages get English.",
    )
    sending_identity: _MailboxId | None = Field(
        default=None,
        description="The id of the Messages mailbox that sends the invitations. The owner must be its sender or "
        "admin. If the field is left out, it is the mailbox with the owner's address, if there is one. Null means none.",
    )
    metadata: Metadata | None = Field(default=None, description="Returned in responses and webhooks.")
    deduplication_key: DeduplicationKey | None = Field(
        default=None, description="Your own unique name for the calendar. It is unique in the project."
    )


_CREATE_MODELS: dict[Any, type[ProviderCalendarCreate | FeedCalendarCreate | LocalCalendarCreate]] = {
    "google": ProviderCalendarCreate,
    "microsoft": ProviderCalendarCreate,
    "ics": FeedCalendarCreate,
    "local": LocalCalendarCreate,
}


def _faults(model: str, sentences: Mapping[str, str]) -> ValidationError:
    """Return an error, for a validator to raise, with a sentence for each field."""
    faults: list[InitErrorDetails] = [
        {"type": PydanticCustomError("refused", sentence), "loc": (field,), "input": None}
        for field, sentence in sentences.items()
    ]
    return ValidationError.from_exception_data(model, faults)


def _by_platform(
    value: Any, _handler: Any
) -> ProviderCalendarCreate | SharedCalendarCreate | FeedCalendarCreate | LocalCalendarCreate:
    """Validate like a tagged union, with errors that name only the field, without the platform before it."""
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
            # Nothing suggests a feed or a local calendar, so all fields that an account's calendar needs are named.
            missing = [
                name for name in ("client_id", "client_secret", "refresh_token") if value.get(name) is None
            ]
            sentences |= dict.fromkeys(missing, "This field is required.")
        raise _faults("CalendarCreate", sentences)
    if model is LocalCalendarCreate and "window" in value:
        raise _faults("CalendarCreate", {"window": no_such_field("local")})
    return model.model_validate(value)


CalendarCreate = Annotated[
    ProviderCalendarCreate | SharedCalendarCreate | FeedCalendarCreate | LocalCalendarCreate,
    WrapValidator(_by_platform),
]

_FIXED = {"platform", "client_id", "platform_uuid", "deduplication_key", "owner_email"}


class CalendarUpdate(UpdateModel):
    """The fields that can be changed.

    Any secret reconnects the calendar. Fields that are left out stay unchanged.
    """

    client_secret: Secret | None = Field(default=None, description="For google and microsoft.")
    refresh_token: Secret | None = Field(default=None, description="For google and microsoft.")
    feed_url: _FeedUrl | None = Field(default=None, description="For ics: the feed's new address.")
    metadata: Metadata | None = Field(
        default=None, description="Replaces the stored metadata. Null removes it."
    )
    window: SyncWindow | None = Field(
        default=None,
        description="For all but local: the days back and ahead in which events are kept in sync. Null means those of "
        "the settings. A change starts a full round. Events that leave the window by it stay as they are.",
        examples=[{"past_days": 7, "future_days": 180}],
    )
    name: Annotated[_CalendarName | None, NotNull] = Field(default=None, description="For local.")
    owner_name: PersonName | None = Field(default=None, description="For local.")
    timezone: Annotated[TimeZoneName | None, NotNull] = Field(
        default=None, description="For local: the time zone of new events."
    )
    locale: Annotated[Locale | None, NotNull] = Field(
        default=None, description="For local: the language of its mails."
    )
    sending_identity: _MailboxId | None = Field(
        default=None,
        description="For local: the id of a mailbox that the owner may send from. Null means none.",
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
        description="If true, connected calendars with a `sync_failure` or `sync_failing_since`. If false, all others.",
    )


class SendingIdentity(BaseModel):
    """The mailbox that sends the invitations of a local calendar."""

    mailbox_id: str
    email: str
    name: str | None


class SyncFailure(BaseModel):
    """The reason why the last sync failed. The calendar stays connected."""

    code: str = Field(
        description="A stable word. `platform_outage` means that many calendars of the platform, or of the feed's "
        "host, fail in the same way. This calendar is synced again when the platform works again.",
        examples=["timeout"],
    )
    message: str = Field(description="A sentence for people. It may change.")
    count: int = Field(
        description="The number of failed syncs since the last success. Syncs that were requested do not count."
    )
    next_attempt_at: OutputTime = Field(description="The next attempt is at this time or earlier.")


class SyncWindowRead(BaseModel):
    """How many days back and ahead the events of a calendar are kept in sync."""

    past_days: int
    future_days: int


class CalendarRead(BaseModel):
    """A calendar. Secrets and tokens are never shown."""

    id: str = Field(examples=["cal_h3Gk29sLqPzX81Ab"])
    platform: Platform
    client_id: str | None = Field(description="For google and microsoft.")
    platform_uuid: str | None
    state: State
    metadata: dict[str, Any] | None
    deduplication_key: str | None
    connection_failure_data: dict[str, Any] | None = Field(
        description='The reason why the calendar was disconnected: {"error", "code", "timestamp"}.'
    )
    created_at: OutputTime
    updated_at: OutputTime
    last_successful_sync_at: OutputTime | None
    last_attempted_sync_at: OutputTime | None
    sync_failing_since: OutputTime | None = Field(
        description="The time of the first failed sync since the last success. Null if the last sync succeeded."
    )
    sync_failure: SyncFailure | None = Field(description="The current problem. Null if there is none.")
    name: str | None
    owner_email: str | None
    owner_name: str | None
    timezone: str | None
    locale: str | None = Field(description="For local: the language of its mails.")
    sending_identity: SendingIdentity | None
    window: SyncWindowRead | None = Field(
        description="The days back and ahead in which events are kept in sync. Null for local, which is not synced."
    )
    covered_from: OutputTime | None = Field(
        description="The start of the time that the last successful sync covers. Null before it. For local: the "
        "calendar's creation."
    )
    covered_until: OutputTime | None = Field(
        description="The end of that time. What comes later is not known. For local: how far recurring events are "
        "expanded."
    )


class RemoteCalendarRead(BaseModel):
    """A calendar of the account at the provider."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Use it as a calendar's `platform_uuid`.")
    name: str
    is_primary: bool


class RemoteCalendarsRead(BaseModel):
    """All calendars of the account, on one page."""

    next: None = None
    previous: None = None
    results: list[RemoteCalendarRead]


class SyncQueued(BaseModel):
    """The sync is queued."""

    status: Literal["queued"] = "queued"
