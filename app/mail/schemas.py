"""Requests and responses about mailboxes.

See docs/reference/http-api.md, "Hosted calendars and invitations".
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.api.schemas import shape
from app.core.addresses import MAIL_ADDRESS, is_mail_address


def _address(value: str) -> str:
    if not is_mail_address(value):
        raise ValueError("Not an e-mail address.")
    return value


class MailboxesQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_email: Annotated[
        str,
        AfterValidator(_address),
        shape(format="email", pattern=MAIL_ADDRESS, examples=["ada@example.com"]),
    ] = Field(max_length=254, description="Whose mailboxes; any case.")


class MailboxRead(BaseModel):
    """A mailbox that the user has access to."""

    mailbox_id: str
    email: str
    name: str | None
    role: str | None = Field(description="`viewer`, `editor`, `sender` or `admin`.")
    can_send: bool = Field(
        description="Whether a calendar of this user may send from it: `sender` and `admin`."
    )


class MailboxesRead(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "results": [
                    {
                        "mailbox_id": "0b7f6c0e-5b0e-4c36-9a3e-3f1f5f0c2d11",
                        "email": "ada@example.com",
                        "name": "Ada Lovelace",
                        "role": "admin",
                        "can_send": True,
                    }
                ]
            }
        }
    )

    results: list[MailboxRead]
