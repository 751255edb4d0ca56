"""Requests and responses about OAuth apps and sessions.

See docs/reference/http-api.md, "OAuth apps and sessions".
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.api.fields import ClientId, DeduplicationKey, PlatformUuid, Secret
from app.api.schemas import InputModel, Metadata, NotBlank, OutputTime, UpdateModel, shape
from app.core.http import httpx

OAuthPlatform = Literal["google", "microsoft"]

_MAX_REDIRECT_URIS = 50
_MAX_URI_LENGTH = 2000


def _check_redirect_uri(text: str) -> str:
    """Check that the address is absolute and has no fragment (RFC 6749, section 3.1.2)."""
    sentence = "Must be a full http or https URL, for example https://example.com/calendar-connected."
    if not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("A redirect address has no spaces, backslashes or control characters.")
    try:
        url = httpx.URL(text)
        is_complete = url.scheme in {"http", "https"} and url.host
    except (httpx.InvalidURL, UnicodeError):  # `host` raises UnicodeError for a bad international name
        raise ValueError(sentence) from None
    if not is_complete or (url.port is not None and not 0 < url.port < 65_536):
        raise ValueError(sentence)
    if url.userinfo:
        raise ValueError("A redirect address has no user name and no password.")
    if "#" in text:
        raise ValueError("A redirect address has no fragment (#...).")
    return text


def _each_once(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


_ClientId = Annotated[ClientId, Field(description="The OAuth client's id at the provider.")]
_ClientSecret = Annotated[Secret, Field(description="Stored encrypted, never shown.")]
_RedirectUri = Annotated[
    str,
    Field(min_length=1, max_length=_MAX_URI_LENGTH),
    AfterValidator(_check_redirect_uri),
    shape(format="uri", pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#:@\\\s][^#\\\s]*$"),
]
_RedirectUris = Annotated[
    list[_RedirectUri],
    Field(
        min_length=1,
        max_length=_MAX_REDIRECT_URIS,
        description="The addresses that browsers may be sent back to. A session's `redirect_uri` must be equal to one.",
        examples=[["https://example.com/calendar-connected"]],
    ),
    AfterValidator(_each_once),
]

_EXAMPLE: JsonDict = {
    "platform": "google",
    "client_id": "1234-abcd.apps.googleusercontent.com",
    "client_secret": "GOCSPX-...",
    "redirect_uris": ["https://example.com/calendar-connected"],
}


class OAuthAppCreate(InputModel):
    """Your OAuth client.

    At the provider, register `{APP_URL}/oauth/{platform}/callback` as its redirect URI.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    platform: OAuthPlatform
    client_id: _ClientId
    client_secret: _ClientSecret
    redirect_uris: _RedirectUris


class OAuthAppUpdate(UpdateModel):
    """The fields that can be changed. Fields that are left out stay unchanged."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"redirect_uris": ["https://example.com/calendar-connected"]}]}
    )

    client_id: _ClientId = ""
    client_secret: _ClientSecret = ""
    redirect_uris: _RedirectUris = Field(default_factory=list)


class OAuthAppRead(BaseModel):
    """An OAuth app. Its secret is never shown."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["oapp_h3Gk29sLqPzX81Ab"])
    platform: OAuthPlatform
    client_id: str
    redirect_uris: list[str]
    callback_url: str = Field(description="Register it at the provider as the client's redirect URI.")
    created_at: OutputTime
    updated_at: OutputTime


class OAuthAppsRead(BaseModel):
    """The project's apps, at most one for each platform."""

    next: None = None
    previous: None = None
    results: list[OAuthAppRead]


class OAuthSessionCreate(InputModel):
    """The calendar that is connected when the person agrees."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "platform": "google",
                    "redirect_uri": "https://example.com/calendar-connected",
                    "deduplication_key": "user-42",
                    "metadata": {"user_id": "42"},
                }
            ]
        }
    )

    platform: OAuthPlatform
    redirect_uri: str = Field(
        min_length=1, max_length=_MAX_URI_LENGTH, description="One of the app's `redirect_uris`."
    )
    deduplication_key: DeduplicationKey | None = Field(
        default=None,
        description="The calendar with this key is reconnected. If there is none, one is created with it.",
    )
    metadata: Metadata | None = Field(default=None, description="The calendar's metadata.")
    platform_uuid: PlatformUuid | None = Field(
        default=None, description="The provider's id of the calendar. Null means the primary one."
    )
    login_hint: Annotated[NotBlank, Field(min_length=1, max_length=320)] | None = Field(
        default=None, description="The person's e-mail address. The provider preselects that account."
    )
    same_account: bool = Field(
        default=False,
        description=(
            "If true, the calendar with the deduplication key is reconnected only with its current account. With "
            "another account nothing changes, and the browser comes back with `error=account_mismatch`."
        ),
    )


class OAuthSessionRead(BaseModel):
    """A connection that was started."""

    authorization_url: str = Field(description="Redirect the person's browser to this address.")
    expires_at: OutputTime = Field(description="The browser must come back before this time.")
