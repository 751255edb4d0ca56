"""The outbox of mails: one row for each mail to one recipient, kept on as the log."""

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId

# The lane that a mail waits in: its mailbox's; by SMTP, one of four of its calendar's owner.
LANE: Final = (
    "(CASE WHEN mailbox_id IS NULL THEN 'smtp:' || owner_email || ':' || (position % 4)::text "
    "ELSE 'mailbox:' || mailbox_id END)"
)


class InvitationMail(Base):
    """One invitation, update, cancellation or answer. `mail` is the complete message, the same on every attempt.

    `mailbox_id` is null for the way out by SMTP.
    `position` orders the mails: of those to one recipient about one event none overtakes another.
    `thread_id` is the Message-ID of the first of them.

    A pending row is due when `next_attempt_at` has come. The worker that claims it sets `lease_token` and puts
    `next_attempt_at` at the lease's end: if the worker dies, the row is due again then. A finished row has neither,
    and no `mail` any more unless it may be sent again. A row is `failed` by `give_up_at`. `open_submits` counts the submits of which nobody knows how they ended: it is raised
    before a submit, and lowered by an answer. With two of them the row ends as `unknown` (docs/messages.md).
    `goes_first`: somebody asked for this mail by hand, so its next attempt waits neither for others nor for a hold.
    `thread_subject`: the subject of the thread that the mail is in; null of rows of older releases.
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
    recipient_key: Mapped[str]  # the address with A-Z folded
    recipient_email: Mapped[str]
    recipient_name: Mapped[str | None]
    replying_key: Mapped[str | None]  # of a REPLY: the folded address of the guest who answered
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
    messages_id: Mapped[str | None]  # what Messages calls the mail
    finished_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class MailLane(Base):
    """What the mails of one lane share: its turn, and whether it must wait.

    `key`: `mailbox:<id>`, `smtp:<owner>:<number>` (see LANE); `messages` for all mailboxes together; and
    `project:<id>`, of which only `served_at` is used. A lane sends one mail at a time: the worker that does has
    `lease_token` until `leased_until`. After a 429 nothing is sent before `held_until`; then one mail is tried, and
    `hold_count` (of holds in a row) tells how long the next hold is. Rows without a lease and a hold may be deleted.
    """

    __tablename__ = "mail_lanes"

    key: Mapped[str] = mapped_column(primary_key=True)
    lease_token: Mapped[str | None]
    leased_until: Mapped[datetime | None]
    served_at: Mapped[datetime | None]
    held_until: Mapped[datetime | None]
    hold_count: Mapped[int] = mapped_column(server_default="0")
    hold_reason: Mapped[str | None]
