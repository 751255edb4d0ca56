"""Sending the mails of the outbox: claimed under a lease, submitted with no transaction open.

A submit can end without a known result: the response is lost, or this process dies. The same bytes are then submitted
once more after ten minutes. If the second submit has no result either, the mail ends as `unknown` and is never sent
again. docs/adr/0005-mail-outbox-and-lanes.md says why, and what lanes and holds are.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import structlog

from app.core import metrics
from app.core.addresses import is_mail_address, same_address
from app.core.backoff import Backoff
from app.core.db import Session, Sessions, transaction
from app.core.errors import AppError
from app.core.lease import Lease
from app.invitations.repository import claims, lanes
from app.invitations.repository.claims import DueMail
from app.mail.check import MailUnsafe, check_mail
from app.mail.lasuite.client import SUBMIT_TIMEOUT_SECONDS
from app.mail.lasuite.errors import MailRefused, MessagesThrottled, MessagesUnavailable
from app.mail.lasuite.mailboxes import Messages
from app.mail.mime import is_to_itself
from app.mail.smtp import SmtpFailed, send_by_smtp
from app.settings import Settings

log = structlog.get_logger()

# Seconds after each failed attempt. The last wait is repeated until `give_up_at`, a day after the mail was written.
RETRY_WAITS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0)
# By then a slow Messages has finished the first submit.
_AFTER_LOST_RESPONSE_SECONDS = 600.0
_MAX_OPEN_SUBMITS = 2
_JITTER = (1.0, 1.1)
# Time to begin and to look up the mailbox. `begin_submit` extends the lease.
_LEASE_FOR = timedelta(seconds=SUBMIT_TIMEOUT_SECONDS + 90)
_BEGIN_WITHIN_SECONDS = 30.0
# For one worker. Messages has few processes, which its users share.
_MAX_BY_MESSAGES = 3
_MAX_BY_SMTP = 8
CONCURRENCY = _MAX_BY_MESSAGES + _MAX_BY_SMTP
_SEND_TIMEOUT_SECONDS = SUBMIT_TIMEOUT_SECONDS + 20

# After a 429. Messages may ask for a wait of up to a day, but limits are often lifted sooner: after at most 15 minutes
# one mail finds out. A shorter Retry-After is observed exactly.
_FIRST_HOLD_SECONDS = 5.0
_MAX_HOLD_SECONDS = 900.0
# Mails that a daily limit holds back are sent on the next days, so they are given up later than others.
_THROTTLED_FOR_SECONDS = 2 * 86_400.0

RefreshEvent = Callable[[Session, str, str], Awaitable[None]]
Result = Literal["sent", "failed", "retry", "throttled", "all_throttled", "lost"]


@dataclass(frozen=True, slots=True)
class ClaimedMail:
    """A due mail that this process has claimed."""

    due: DueMail
    lease: Lease


@dataclass(frozen=True, slots=True)
class _Outcome:
    result: Result
    error: str | None = None
    retry_after: float = 0.0
    messages_id: str | None = None


class _NothingSent(Exception):
    """The mail was not submitted; `outcome` says why."""

    def __init__(self, outcome: _Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


class MailSender:
    """Claims due mails with `claim`, and sends each with `handle`, in a task of its own.

    Any number of senders may run, in one process or in several. `refresh_event` writes the rows of an event again,
    which name the guests that a mail did not reach.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        sessions: Sessions,
        messages: Messages,
        refresh_event: RefreshEvent,
        retry_waits: Sequence[float] = RETRY_WAITS,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._messages = messages
        self._refresh_event = refresh_event
        self._backoff = Backoff(tuple(retry_waits), _JITTER)
        self._in_flight = dict.fromkeys((False, True), 0)  # by whether the mail is sent by SMTP

    async def claim(self, limit: int) -> list[ClaimedMail]:
        """Claim up to `limit` due mails. Messages and SMTP have separate limits: neither blocks the other."""
        lease = Lease.new(begin_within_seconds=_BEGIN_WITHIN_SECONDS)
        by_messages = min(limit, _MAX_BY_MESSAGES - self._in_flight[False])
        by_smtp = min(limit, _MAX_BY_SMTP - self._in_flight[True])
        if by_messages + by_smtp > limit:
            by_messages = min(by_messages, (limit + 1) // 2)
            by_smtp = min(by_smtp, limit - by_messages)
        if by_messages + by_smtp <= 0:
            return []
        async with transaction(self._sessions) as session:
            found = await claims.claim_due(
                session,
                by_messages=by_messages,
                by_smtp=by_smtp,
                lease_token=lease.token,
                lease_for=_LEASE_FOR,
            )
        for mail in found:
            self._in_flight[mail.mailbox_id is None] += 1
        return [ClaimedMail(mail, lease) for mail in found]

    async def handle(self, claimed: ClaimedMail) -> None:
        """Make one attempt. Errors of Messages and of mail servers are written into the row, and not raised."""
        try:
            await self._attempt(claimed)
        finally:
            self._in_flight[claimed.due.mailbox_id is None] -= 1

    async def _attempt(self, claimed: ClaimedMail) -> None:
        due = claimed.due
        if claimed.lease.is_too_late:
            log.warning("mail_too_late", mail_id=due.id)
            await self._leave(due)
            return
        if due.open_submits >= _MAX_OPEN_SUBMITS:
            await self._settle(due, _Outcome("lost", "No submit of this mail got a response."))
            return
        try:
            await self._check_bytes(due)
            mailbox_id = await self._check_right(due)
        except _NothingSent as stop:
            await self._settle(due, stop.outcome)
            return
        async with transaction(self._sessions) as session:
            is_ours = await claims.begin_submit(
                session, due.id, due.lease_token, lease_for=timedelta(seconds=_AFTER_LOST_RESPONSE_SECONDS)
            )
        if not is_ours:
            log.warning("mail_lease_lost", mail_id=due.id)
            await self._leave(due)
            return
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_SECONDS):
                outcome = await (
                    self._submit(due, mailbox_id) if mailbox_id is not None else self._send_by_smtp(due)
                )
        except TimeoutError:
            outcome = _Outcome("lost", "The mail was not accepted in time.")
        await self._settle(due, outcome)

    async def _check_bytes(self, due: DueMail) -> None:
        """Check that the mail goes to its recipient only, whichever release wrote it. Raises _NothingSent."""
        if not is_mail_address(due.recipient_email):
            reason = f"No mail can arrive at {due.recipient_email}: check what follows the @."
            raise _NothingSent(_Outcome("failed", reason))
        try:
            # In a thread: it reads up to 20 MiB.
            await asyncio.to_thread(
                check_mail, due.mail, sender_email=due.sender_email, recipient_email=due.recipient_email
            )
        except MailUnsafe as err:
            metrics.INVITATION_MAILS_UNSAFE.inc()
            log.error("mail_unsafe", mail_id=due.id, reason=str(err))  # noqa: TRY400 - it is about the mail, not this code
            reason = f"The mail was written wrongly and is not sent: {err}. Change the event to invite anew."
            raise _NothingSent(_Outcome("failed", reason)) from None

    async def _check_right(self, due: DueMail) -> str | None:
        """Return the mailbox to send from, None for SMTP. Raises _NothingSent if the owner has no right to.

        Messages does not check the roles of users (docs/reference/messages.md, "Rights of users").
        """
        if due.mailbox_id is None:
            if self._settings.smtp_url is None:
                raise _NothingSent(_Outcome("retry", "SMTP_URL is not set any more."))
            return None
        try:
            mailboxes = await self._messages.list_mailboxes(due.owner_email)
        except MessagesThrottled as err:
            raise _NothingSent(_Outcome("all_throttled", err.message, err.retry_after)) from None
        except AppError as err:
            raise _NothingSent(_Outcome("retry", err.message)) from None
        mailbox = next((box for box in mailboxes if box.mailbox_id == due.mailbox_id), None)
        if mailbox is None:
            # A mailbox that was deleted and created again has another id.
            mailbox = next((box for box in mailboxes if same_address(box.email, due.sender_email)), None)
        if mailbox is None or not mailbox.can_send:
            reason = f"{due.owner_email} may not send from the mailbox {due.sender_email} any more."
            raise _NothingSent(_Outcome("failed", reason))
        if not same_address(mailbox.email, due.sender_email):
            reason = f"The mailbox's address is not {due.sender_email} any more."
            raise _NothingSent(_Outcome("failed", reason))
        return mailbox.mailbox_id

    async def _submit(self, due: DueMail, mailbox_id: str) -> _Outcome:
        mail = due.mail
        if due.open_submits and is_to_itself(due.sender_email, due.recipient_email):
            # If the first copy was accepted, it is in the inbox. With a Message-ID, the second is only stored as sent.
            mail = b"Message-ID: " + due.message_id.encode() + b"\r\n" + mail
        try:
            messages_id = await self._messages.client.submit(mailbox_id, [due.recipient_email], mail)
        except MessagesThrottled as err:
            reason = "Messages takes no more mails from this mailbox for now (429)."
            return _Outcome("throttled", reason, err.retry_after)
        except MessagesUnavailable as err:
            return _Outcome("lost" if err.may_be_taken else "retry", err.message, err.retry_after)
        except MailRefused as err:
            return _Outcome("failed", err.message)
        except AppError as err:  # refused, or disabled: the operator can fix that
            return _Outcome("retry", err.message)
        return _Outcome("sent", messages_id=messages_id)

    async def _send_by_smtp(self, due: DueMail) -> _Outcome:
        try:
            await send_by_smtp(
                self._settings, sender=due.sender_email, recipient=due.recipient_email, mail=due.mail
            )
        except SmtpFailed as err:
            result: Result = "retry"
            if err.is_final:
                result = "failed"
            elif err.may_be_taken:
                result = "lost"
            elif err.is_throttled:
                result = "throttled"
            return _Outcome(result, str(err))
        return _Outcome("sent")

    async def _leave(self, due: DueMail) -> None:
        """Leave the mail until its lease expires, and release its lane."""
        async with transaction(self._sessions) as session:
            if due.mailbox_id is not None:
                await lanes.end_probe(session, due.lease_token)
            await lanes.release_lane(session, due.lane, due.lease_token)

    async def _settle(self, due: DueMail, outcome: _Outcome) -> None:
        """Write the result of an attempt. `due.open_submits` is the number before it."""
        result: str = outcome.result
        open_submits = due.open_submits
        is_throttled = outcome.result in {"throttled", "all_throttled"}
        if result == "lost":
            open_submits += 1
            if open_submits >= _MAX_OPEN_SUBMITS:
                result = "unknown"
        elif result == "failed" and open_submits:
            # An earlier submit may have succeeded.
            result = "unknown"
        elif (result == "retry" and due.seconds_left <= 0) or (
            is_throttled and due.seconds_left <= -_THROTTLED_FOR_SECONDS
        ):
            result = "unknown" if open_submits else "failed"
        error = outcome.error
        async with transaction(self._sessions) as session:
            if result in {"sent", "failed", "unknown"}:
                settled = await claims.finish(
                    session,
                    due,
                    status=result,
                    error=error,
                    messages_id=outcome.messages_id,
                    open_submits=open_submits,
                )
                if settled and result == "failed":
                    await self._refresh_event(session, due.calendar_id, due.event_uid)
            else:
                settled = await claims.retry_later(
                    session,
                    due,
                    # A throttled mail waits with its lane, and is due as soon as the hold ends.
                    wait_seconds=0 if is_throttled else self._wait(due, outcome),
                    error=error or "",
                    open_submits=open_submits,
                )
            if is_throttled:
                await lanes.hold(
                    session,
                    due.lane if outcome.result == "throttled" else None,
                    wait_seconds=outcome.retry_after,
                    first_seconds=_FIRST_HOLD_SECONDS,
                    longest_seconds=_MAX_HOLD_SECONDS,
                    reason=error or "",
                )
            if outcome.result == "sent":
                await lanes.end_holds(
                    session, due.lane, due.lease_token, by_messages=due.mailbox_id is not None
                )
            else:
                if due.mailbox_id is not None and outcome.result != "all_throttled":
                    await lanes.end_probe(session, due.lease_token)
                await lanes.release_lane(session, due.lane, due.lease_token)
        if settled and result in {"sent", "unknown"} and due.follows_failure:
            # In a transaction of its own, so that its failure cannot undo the result of the mail.
            async with transaction(self._sessions) as session:
                await self._refresh_event(session, due.calendar_id, due.event_uid)
        metrics.INVITATION_MAILS.labels(due.method, "throttled" if is_throttled else result).inc()
        if not settled:
            log.warning("mail_lease_lost", mail_id=due.id, outcome=result)
        elif result == "sent":
            log.info("mail_sent", mail_id=due.id, method=due.method)
        else:
            log.warning(
                "mail_not_sent",
                project_id=due.project_id,
                mail_id=due.id,
                method=due.method,
                outcome=result,
                error=error,
            )

    def _wait(self, due: DueMail, outcome: _Outcome) -> float:
        if outcome.result == "lost":
            return _AFTER_LOST_RESPONSE_SECONDS
        return self._backoff.delay(due.attempt_count, retry_after=outcome.retry_after)
