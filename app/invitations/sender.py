"""The worker's side of the outbox: each mail is claimed under a lease, and submitted with no transaction open.

A submit can end without anybody knowing how: the answer is lost, or this process dies. Messages does not
deduplicate, and cannot be asked. Such a mail is submitted once more after ten minutes, the very same bytes: for the
receiver a twin has the same Message-ID, UID, SEQUENCE and DTSTAMP, and changes nothing; an invitation that never comes
would. If that submit too ends in the dark, the mail is left as `unknown`, because then it has very likely
been taken both times.

Mails wait in lanes: one for each mailbox, and by SMTP some for each owner. A lane sends one mail at a time, whichever
workers there are, because Messages does not take two at once from a mailbox either: they only block its users. The
lanes take turns, so nobody waits behind somebody else's event with hundreds of guests. A 429 holds its own lane alone.
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
from app.invitations import repository
from app.invitations.repository import DueMail
from app.mail.check import MailUnsafe, check_mail
from app.mail.client import SUBMIT_WITHIN_SECONDS, MailRefused, MessagesThrottled, MessagesUnavailable
from app.mail.mailboxes import Messages
from app.mail.mime import is_to_itself
from app.mail.smtp import SmtpFailed, send_by_smtp
from app.settings import Settings

log = structlog.get_logger()

# Seconds after each failed attempt; the last wait is repeated until a day is over.
RETRY_WAITS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0)
# By then a Messages that was slow has finished, and its log shows whether the first one went out.
_AFTER_LOST_ANSWER_SECONDS = 600.0
_MOST_OPEN_SUBMITS = 2
_JITTER = (1.0, 1.1)
# Time to begin and to look up the mailbox. From the submit on, a mail is left alone like one without an answer.
_LEASE_FOR = timedelta(seconds=SUBMIT_WITHIN_SECONDS + 90)
_BEGIN_WITHIN_SECONDS = 30.0
# Of one worker. Messages has few processes for all who use it.
_MOST_BY_MESSAGES = 3
_MOST_BY_SMTP = 8
CONCURRENCY = _MOST_BY_MESSAGES + _MOST_BY_SMTP
_SEND_WITHIN_SECONDS = SUBMIT_WITHIN_SECONDS + 20

# After a 429. Messages may ask for up to a day; but limits are lifted, and windows end sooner than told: one mail now
# and then finds out. A short Retry-After is heeded to the second.
_FIRST_HOLD_SECONDS = 5.0
_LONGEST_HOLD_SECONDS = 900.0
# A daily limit is no reason to give up the mails that come after it on the next days.
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
    """What stopped a mail before its submit."""

    def __init__(self, outcome: _Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


class MailSender:
    """`claim`, then `handle` each in a task of its own. Any number of them may run.

    `refresh_event` has an event's rows written anew, which show the guests that a mail did not reach.
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
        self._under_way = dict.fromkeys((False, True), 0)  # by whether it is by SMTP

    async def claim(self, limit: int) -> list[ClaimedMail]:
        """Up to `limit` mails to send now, of each way out not more than may be under way: a dead one holds up no other."""
        lease = Lease.new(begin_within_seconds=_BEGIN_WITHIN_SECONDS)
        by_messages = min(limit, _MOST_BY_MESSAGES - self._under_way[False])
        by_smtp = min(limit, _MOST_BY_SMTP - self._under_way[True])
        if by_messages + by_smtp > limit:
            by_messages = min(by_messages, (limit + 1) // 2)
            by_smtp = min(by_smtp, limit - by_messages)
        if by_messages + by_smtp <= 0:
            return []
        async with transaction(self._sessions) as session:
            found = await repository.claim_due(
                session,
                by_messages=by_messages,
                by_smtp=by_smtp,
                lease_token=lease.token,
                lease_for=_LEASE_FOR,
            )
        for mail in found:
            self._under_way[mail.mailbox_id is None] += 1
        return [ClaimedMail(mail, lease) for mail in found]

    async def handle(self, claimed: ClaimedMail) -> None:
        """One attempt. Raises nothing for the fault of Messages or of a mail server."""
        try:
            await self._attempt(claimed)
        finally:
            self._under_way[claimed.due.mailbox_id is None] -= 1

    async def _attempt(self, claimed: ClaimedMail) -> None:
        due = claimed.due
        if claimed.lease.is_too_late:
            log.warning("mail_too_late", mail_id=due.id)
            await self._leave(due)
            return
        if due.open_submits >= _MOST_OPEN_SUBMITS:
            await self._settle(due, _Outcome("lost", "No submit of this mail was answered."))
            return
        try:
            await self._check_bytes(due)
            mailbox_id = await self._check_right(due)
        except _NothingSent as stop:
            await self._settle(due, stop.outcome)
            return
        async with transaction(self._sessions) as session:
            is_ours = await repository.begin_submit(
                session, due.id, due.lease_token, lease_for=timedelta(seconds=_AFTER_LOST_ANSWER_SECONDS)
            )
        if not is_ours:
            log.warning("mail_lease_lost", mail_id=due.id)
            await self._leave(due)
            return
        try:
            async with asyncio.timeout(_SEND_WITHIN_SECONDS):
                outcome = await (
                    self._submit(due, mailbox_id) if mailbox_id is not None else self._send_by_smtp(due)
                )
        except TimeoutError:
            outcome = _Outcome("lost", "The mail was not taken in time.")
        await self._settle(due, outcome)

    async def _check_bytes(self, due: DueMail) -> None:
        """Whatever release wrote the mail: it goes to its recipient alone, or not at all. Raises _NothingSent."""
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
        """The mailbox to send from, from which the owner may still send; None by SMTP. Raises _NothingSent.

        Messages itself checks no user's role (docs/reference/messages.md, "Rights of users").
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
            # Deleted and made anew, it has another id.
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
            # If the first copy was taken it is in the inbox: with a Message-ID, the second is only stored as sent.
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
        except AppError as err:  # refused, or switched off: the operator can mend that
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
        """To whoever claims it after its lease; its lane goes on."""
        async with transaction(self._sessions) as session:
            if due.mailbox_id is not None:
                await repository.end_probe(session, due.lease_token)
            await repository.release_lane(session, due.lane, due.lease_token)

    async def _settle(self, due: DueMail, outcome: _Outcome) -> None:
        """Writes what came of an attempt. `open_submits` of `due` is from before it."""
        result: str = outcome.result
        open_submits = due.open_submits
        is_throttled = outcome.result in {"throttled", "all_throttled"}
        if result == "lost":
            open_submits += 1
            if open_submits >= _MOST_OPEN_SUBMITS:
                result = "unknown"
        elif result == "failed" and open_submits:
            # An earlier submit may have gone through: then this is not a plain failure.
            result = "unknown"
        elif (result == "retry" and due.seconds_left <= 0) or (
            is_throttled and due.seconds_left <= -_THROTTLED_FOR_SECONDS
        ):
            result = "unknown" if open_submits else "failed"
        error = outcome.error
        async with transaction(self._sessions) as session:
            if result in {"sent", "failed", "unknown"}:
                settled = await repository.finish(
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
                settled = await repository.retry_later(
                    session,
                    due,
                    # A mail that is throttled waits with its lane: it may go as soon as others may.
                    wait_seconds=0 if is_throttled else self._wait(due, outcome),
                    error=error or "",
                    open_submits=open_submits,
                )
            if is_throttled:
                await repository.hold(
                    session,
                    due.lane if outcome.result == "throttled" else None,
                    wait_seconds=outcome.retry_after,
                    first_seconds=_FIRST_HOLD_SECONDS,
                    longest_seconds=_LONGEST_HOLD_SECONDS,
                    reason=error or "",
                )
            if outcome.result == "sent":
                await repository.end_holds(session, due)
            else:
                if due.mailbox_id is not None and outcome.result != "all_throttled":
                    await repository.end_probe(session, due.lease_token)
                await repository.release_lane(session, due.lane, due.lease_token)
        if settled and result in {"sent", "unknown"} and due.follows_failure:
            # On its own: nothing may keep a mail that went out from being noted as such.
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
            return _AFTER_LOST_ANSWER_SECONDS
        return self._backoff.delay(due.attempt_count, retry_after=outcome.retry_after)
