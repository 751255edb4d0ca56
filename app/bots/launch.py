"""Handing due bots over to the runner, an Attendee-compatible `POST {BOT_RUNNER_URL}/api/v1/bots`.

A bot is claimed (`launching`, under a lease), the runner is called with no transaction open, and what it answered
is written. A worker that dies between the two leaves a lease that runs out; whoever claims the bot then asks the
runner whether it has it. If the runner cannot tell, it is handed over again with the same deduplication key, the
bot's id, of which the runner makes no second bot.

Without BOT_RUNNER_URL the step to `launching`, with its webhook, is the hand-over.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import orjson
import structlog

from app.bots import lifecycle, repository, service
from app.bots.lifecycle import BotState, Failed, Launched, NotThere, Outcome, Refused
from app.bots.repository import WholeBot
from app.bots.runner import drop_nulls
from app.bots.words import shown_state
from app.core import metrics
from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.core.fetch import FetchFailed, Response, fetch, retry_after
from app.core.http import httpx
from app.core.lease import Lease
from app.settings import Settings

log = structlog.get_logger()

_CALL_WITHIN_SECONDS = 15.0
# Time to begin, and for three calls.
_LEASE_FOR = timedelta(seconds=60)
_BEGIN_WITHIN_SECONDS = 15.0
_READ_AT_MOST_BYTES = 65_536
_RESPONSE_CHARACTERS = 2_000
_LONGEST_RUNNER_ID = 255

# 4xx that say "later" and not "never".
_LATER = {408, 425, 429}


@dataclass(frozen=True, slots=True)
class ClaimedBot:
    """A due bot as it was when this process claimed it."""

    whole: WholeBot
    lease: Lease


class Launcher:
    """The worker's side: `claim`, then `handle` each in a task of its own. Any number of them may run."""

    def __init__(self, *, settings: Settings, sessions: Sessions, client: httpx.AsyncClient) -> None:
        self._sessions = sessions
        self._client = client
        self._lead = timedelta(seconds=settings.bot_launch_lead_seconds)
        self._url = f"{settings.bot_runner_url}/api/v1/bots" if settings.bot_runner_url else None
        self._api_key = (
            settings.bot_runner_api_key.get_secret_value() if settings.bot_runner_api_key else None
        )

    async def claim(self, limit: int) -> list[ClaimedBot]:
        """Up to `limit` bots to hand over now. Bots that need no call are dealt with here."""
        while True:
            claimed, is_full = await self._claim(limit)
            if claimed or not is_full:
                return claimed

    async def _claim(self, limit: int) -> tuple[list[ClaimedBot], bool]:
        lease = Lease.new(begin_within_seconds=_BEGIN_WITHIN_SECONDS)
        async with transaction(self._sessions) as session:
            due = await repository.lock_due(session, lead=self._lead, limit=limit)
            now = utcnow()
            steps = [
                lifecycle.claim(
                    whole.state,
                    now,
                    has_runner=self._url is not None,
                    lease_token=lease.token,
                    lease_for=_LEASE_FOR,
                )
                for whole in due
            ]
            await service.take(session, steps)
        claimed = []
        for whole, step in zip(due, steps, strict=True):
            if step.after is not None and step.after.is_attempted:
                claimed.append(ClaimedBot(whole, lease))
            elif step.entry is not None:
                metrics.BOT_LAUNCHES.labels(step.entry.sub_type or "announced").inc()
                log.info("bot_due", bot_id=whole.state.id, state=_shown(step.after))
        return claimed, len(due) >= limit

    async def handle(self, claimed: ClaimedBot) -> None:
        """One attempt. Raises nothing for the runner's fault."""
        bot = claimed.whole.state
        if claimed.lease.is_too_late:
            log.warning("bot_launch_too_late", bot_id=bot.id)
            return
        outcome = await self._hand_over(claimed.whole)
        await self._settle(claimed, outcome)

    async def _hand_over(self, whole: WholeBot) -> Outcome:
        if whole.state.may_be_handed_over:
            known = await self._look_up(whole.state)
            if known is not None:
                return known
        now = utcnow()
        body = _order(whole, with_join_at=whole.state.join_at > now)
        response = await self._call("POST", self._url or "", body)
        if isinstance(response, Failed):
            return response
        status = response.status
        if 200 <= status < 300:
            return Launched(_runner_bot_id(response.json_object() or {}))
        if _is_duplicate(response):
            return await self._look_up(whole.state, is_known=True) or Launched(None)
        if "join_at" in body and whole.state.join_at <= utcnow() and 400 <= status < 500:
            # It was in the future when it was sent, and a runner refuses one in the past.
            return self._failed(response, is_unclear=False)
        if 400 <= status < 500 and status not in _LATER:
            return Refused(status, self._text(response.body))
        # A runner that is not ready made no bot; one that fails may have done so after making it.
        return self._failed(response, is_unclear=status == 408 or (status >= 500 and status != 503))

    async def _look_up(self, bot: BotState, *, is_known: bool = False) -> Launched | NotThere | None:
        """Whether the runner has the bot, and by which id; None where it does not tell."""
        query = urlencode({"deduplication_key": bot.id})
        response = await self._call("GET", f"{self._url}?{query}", None)
        if isinstance(response, Failed) or response.status != 200:
            return None
        listed = response.json_object() or {}
        results = listed.get("results")
        if not isinstance(results, list):
            return None
        for found in results:
            if isinstance(found, dict) and found.get("deduplication_key") == bot.id:
                return Launched(_runner_bot_id(found))
        # A runner that does not know the filter lists other bots, and this one may be on the next page.
        return NotThere() if not results and not is_known else None

    async def _call(self, method: str, url: str, body: dict[str, Any] | None) -> Response | Failed:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._api_key is not None:
            headers["Authorization"] = f"Token {self._api_key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = orjson.dumps(body) if body is not None else None
        try:
            # The start of the response is enough.
            return await fetch(
                self._client,
                method,
                url,
                headers=headers,
                content=content,
                max_bytes=_READ_AT_MOST_BYTES,
                deadline_seconds=_CALL_WITHIN_SECONDS,
                decode=False,
                truncate=True,
            )
        except FetchFailed as err:
            if err.stage == "connect":
                return Failed(f"No connection to the runner ({err.cause}).", is_unclear=False)
            if err.code == "timeout":
                return Failed("The runner did not answer in time.", is_unclear=True)
            return Failed(f"The connection to the runner broke ({err.cause}).", is_unclear=True)

    def _failed(self, response: Response, *, is_unclear: bool) -> Failed:
        status = response.status
        return Failed(
            f"The runner answered {status}.",
            is_unclear=is_unclear,
            status_code=status,
            response=self._text(response.body),
            retry_after=retry_after(response.headers),
        )

    def _text(self, body: bytes) -> str:
        """The start of an answer, without the key, should the runner have repeated it."""
        text = body.decode("utf-8", "replace").replace("\x00", "\ufffd")
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return text[:_RESPONSE_CHARACTERS]

    async def _settle(self, claimed: ClaimedBot, outcome: Outcome) -> None:
        bot_id = claimed.whole.state.id
        async with transaction(self._sessions) as session:
            bot = await repository.lock_leased(session, bot_id, claimed.lease.token)
            steps = []
            if bot is not None:
                steps = lifecycle.settle(
                    bot, outcome, utcnow(), was_unclear=claimed.whole.state.may_be_handed_over
                )
            for step in steps:
                await service.take(session, [step])
        word = type(outcome).__name__.lower()
        if not steps:
            log.warning("bot_lease_lost", bot_id=bot_id, outcome=word)
            return
        metrics.BOT_LAUNCHES.labels(word).inc()
        after = steps[-1].after
        level = log.info if isinstance(outcome, Launched | NotThere) else log.warning
        level(
            "bot_hand_over",
            bot_id=bot_id,
            outcome=word,
            status_code=getattr(outcome, "status_code", None),
            state=_shown(after),
        )


def _shown(bot: BotState | None) -> str:
    return shown_state(bot.state) if bot is not None else "deleted"


def _order(whole: WholeBot, *, with_join_at: bool) -> dict[str, Any]:
    """The body for the runner. A time to join that has passed is left out: the bot is to join at once."""
    bot = whole.state
    ours: dict[str, Any] = {
        "meeting_url": bot.meeting_url,
        "bot_name": whole.bot_name,
        "deduplication_key": bot.id,
        "metadata": bot.metadata,
        "join_at": isoformat(bot.join_at) if with_join_at else None,
    }
    # Rows of the first release may have nulls, which a runner refuses.
    theirs = {name: value for name, value in drop_nulls(whole.bot_settings).items() if name not in ours}
    return theirs | {name: value for name, value in ours.items() if value is not None}


def _is_duplicate(response: Response) -> bool:
    """Whether the runner refuses since it has a bot with this deduplication key (Attendee: a 400 that says so)."""
    words = response.body.lower()
    return response.status == 409 or (
        response.status == 400 and b"deduplication" in words and b"already" in words
    )


def _runner_bot_id(found: dict[str, Any]) -> str | None:
    value = found.get("id")
    return value[:_LONGEST_RUNNER_ID] if isinstance(value, str) else None
