"""The outbox of mails: one row for each mail to one recipient. Finished rows are kept as the log."""

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId

# The lane that a mail waits in: the one of its mailbox. By SMTP it is one of four of the calendar's owner.
LANE: Final = (
    "(CASE WHEN mailbox_id IS NULL THEN 'smtp:' || owner_email || ':' || (position % 4)::text "
    "ELSE 'mailbox:' || mailbox_id END)"
)


class InvitationMail(Base):
    """One mail: an invitation, an update, a cancellation or a reply.

    A pending row is due when `next_attempt_at` has come. The worker that claims it sets `lease_token` and moves
    `next_attempt_at` to the end of the lease: if the worker dies, the row is due again then. A finished row has neither.

    - `position`: orders the mails. Mails to one recipient about one event are sent in this order.
    - `recipient_key`: the recipient's address with A-Z in lower case.
    - `replying_key`: for a REPLY, the address of the guest who replied, with A-Z in lower case.
    - `mailbox_id`: the mailbox of Messages that sends the mail; null if it is sent by SMTP.
    - `thread_id`: the Message-ID of the first mail to this recipient about this event.
    - `thread_subject`: the subject of the mail's thread; null for rows of older releases.
    - `mail`: the complete message, the same on every attempt. A finished row keeps it only if it may be sent again.
    - `open_submits`: how many submits have an unknown result. It is raised before a submit and lowered by a response.
      With two of them the row ends as `unknown` (docs/messages.md).
    - `give_up_at`: when a row that was not sent becomes `failed`.
    - `goes_first`: a client asked for this mail to be sent again, so it waits neither for other mails nor for a hold.
    - `messages_id`: the id of the mail in Messages.
    """

    __tablename__ = "invitation_mails"
    __table_args__ = (
        CheckConstraint("method IN ('REQUEST', 'CANCEL', 'REPLY')", name="method"),
        CheckConstraint("status IN ('pending', 'sent', 'failed', 'unknown')", name="status"),
        CheckConstraint("(status = 'pending') = (next_attempt_at IS NOT NULL)", name="pending_is_due"),
        CheckConstraint("status <> 'pending' OR mail IS NOT NULL", name="pending_has_mail"),
        Index(
            "ix_invitation_mails_due",
            "next_attempt_at",
            "position",
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_invitation_mails_lanes",
            "project_id",
            text(LANE),
            "next_attempt_at",
            "position",
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_invitation_mails_first",
            text(LANE),
            "position",
            postgresql_where=text("status = 'pending' AND goes_first"),
        ),
        Index("ix_invitation_mails_thread", "calendar_id", "event_uid", "recipient_key", "position"),
        Index("ix_invitation_mails_log", "calendar_id", "event_uid", "created_at", "id"),
        Index(
            "ix_invitation_mails_failed",
            "calendar_id",
            "event_uid",
            postgresql_where=text("status = 'failed'"),
        ),
        Index(
            "ix_invitation_mails_kept",
            "finished_at",
            postgresql_where=text("status <> 'pending' AND mail IS NOT NULL"),
        ),
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    project_id: Mapped[PublicId]
    calendar_id: Mapped[PublicId] = mapped_column(ForeignKey("calendars.id", ondelete="CASCADE"))
    event_uid: Mapped[str]
    recurrence_id: Mapped[datetime | None]
    method: Mapped[str]
    sequence: Mapped[int]
    recipient_key: Mapped[str]
    recipient_email: Mapped[str]
    recipient_name: Mapped[str | None]
    replying_key: Mapped[str | None]
    mailbox_id: Mapped[str | None]
    sender_email: Mapped[str]
    sender_name: Mapped[str | None]
    owner_email: Mapped[str]
    message_id: Mapped[str]
    thread_id: Mapped[str | None]
    thread_subject: Mapped[str | None]
    mail: Mapped[bytes | None] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(server_default="pending")
    attempt_count: Mapped[int] = mapped_column(server_default="0")
    open_submits: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None]
    give_up_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp() + interval '1 day'"))
    goes_first: Mapped[bool] = mapped_column(server_default=text("false"))
    lease_token: Mapped[str | None]
    last_error: Mapped[str | None]
    messages_id: Mapped[str | None]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class MailLane(Base):
    """The state that the mails of one lane share. Rows without a lease and without a hold may be deleted.

    - `key`: `mailbox:<id>` or `smtp:<owner>:<number>` (see LANE); `messages` for all mailboxes together;
      `project:<id>`, which uses only `served_at`.
    - `lease_token`, `leased_until`: the lease of the worker that sends from this lane. A lane sends one mail at a time.
    - `served_at`: when the lane had its last turn.
    - `held_until`: nothing is sent before this time, because of a 429. One mail is tried then.
    - `hold_count`: how many holds there were in a row. It determines how long the next one is.
    """

    __tablename__ = "mail_lanes"

    key: Mapped[str] = mapped_column(primary_key=True)
    lease_token: Mapped[str | None]
    leased_until: Mapped[datetime | None]
    served_at: Mapped[datetime | None]
    held_until: Mapped[datetime | None]
    hold_count: Mapped[int] = mapped_column(server_default="0")
    hold_reason: Mapped[str | None]
