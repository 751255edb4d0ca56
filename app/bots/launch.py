"""Handing due bots over to the runner, an Attendee-compatible `POST {BOT_RUNNER_URL}/api/v1/bots`.

A bot is claimed (`launching`, with a lease), the runner is called with no transaction open, and its response is
written. If a worker dies in between, the next worker that claims the bot asks the runner whether it has it. If the
runner does not say, the bot is handed over again with the same deduplication key, the bot's id: the runner makes no
second bot of that key.

Without BOT_RUNNER_URL the transition to `launching`, with its webhook, is the hand-over.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import orjson
import structlog

from app.bots import lifecycle, service
from app.bots.lifecycle import BotState, Failed, Launched, Outcome, Refused, UnknownToRunner
from app.bots.repository import states
from app.bots.repository.states import BotWithSettings
from app.bots.runner import drop_nulls
from app.bots.words import shown_state
from app.core import metrics
from app.core.clock import isoformat, utcnow
from app.core.db import Session, Sessions, transaction
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

# 4xx that ask for another attempt.
_LATER = {408, 425, 429}

# Values of the metric's label `outcome`.
_OUTCOME_LABELS: dict[type[Outcome], str] = {
    Launched: "launched",
    Refused: "refused",
    Failed: "failed",
    UnknownToRunner: "notthere",
}


@dataclass(frozen=True, slots=True)
class ClaimedBot:
    """A due bot as it was when this process claimed it."""

    bot: BotWithSettings
    lease: Lease


class Launcher:
    """Hands over bots in a worker: `claim`, then `handle` each in a task of its own. Any number may run.

    `judge_later`: has the join rules judge the event of a bot again (app/join_rules/service.py).
    """

    def __init__(
        self,
        *,
        settings: Settings,
        sessions: Sessions,
        client: httpx.AsyncClient,
        judge_later: Callable[[Session, BotState], Awaitable[None]],
    ) -> None:
        self._sessions = sessions
        self._judge_later = judge_later
        self._client = client
        self._lead = timedelta(seconds=settings.bot_launch_lead_seconds)
        self._url = f"{settings.bot_runner_url}/api/v1/bots" if settings.bot_runner_url else None
        self._api_key = (
            settings.bot_runner_api_key.get_secret_value() if settings.bot_runner_api_key else None
        )

    async def claim(self, limit: int) -> list[ClaimedBot]:
        """Claim up to `limit` bots to hand over now. Bots that need no call are settled here."""
        while True:
            claimed, is_full = await self._claim(limit)
            if claimed or not is_full:
                return claimed

    async def _claim(self, limit: int) -> tuple[list[ClaimedBot], bool]:
        lease = Lease.new(begin_within_seconds=_BEGIN_WITHIN_SECONDS)
        async with transaction(self._sessions) as session:
            due = await states.lock_due(session, lead=self._lead, limit=limit)
            now = utcnow()
            transitions = [
                lifecycle.claim(
                    bot.state,
                    now,
                    has_runner=self._url is not None,
                    lease_token=lease.token,
                    lease_for=_LEASE_FOR,
                )
                for bot in due
            ]
            await service.apply_transitions(session, transitions)
        claimed = []
        for bot, transition in zip(due, transitions, strict=True):
            if transition.after is not None and transition.after.is_attempted:
                claimed.append(ClaimedBot(bot, lease))
            elif transition.entry is not None:
                metrics.BOT_LAUNCHES.labels(transition.entry.sub_type or "announced").inc()
                log.info("bot_due", bot_id=bot.state.id, state=_shown(transition.after))
        return claimed, len(due) >= limit

    async def handle(self, claimed: ClaimedBot) -> None:
        """Make one attempt. An error of the runner is recorded and not raised."""
        bot = claimed.bot.state
        if claimed.lease.is_too_late:
            log.warning("bot_launch_too_late", bot_id=bot.id)
            return
        outcome = await self._hand_over(claimed.bot)
        await self._settle(claimed, outcome)

    async def _hand_over(self, bot: BotWithSettings) -> Outcome:
        if bot.state.may_be_handed_over:
            known = await self._look_up(bot.state)
            if known is not None:
                return known
        now = utcnow()
        body = _order(bot, with_join_at=bot.state.join_at > now)
        response = await self._call("POST", self._url or "", body)
        if isinstance(response, Failed):
            return response
        status = response.status
        if 200 <= status < 300:
            return Launched(_runner_bot_id(response.json_object() or {}))
        if _is_duplicate(response):
            return await self._look_up(bot.state, is_known=True) or Launched(None)
        if "join_at" in body and bot.state.join_at <= utcnow() and 400 <= status < 500:
            # It was in the future when it was sent, and a runner refuses one in the past.
            return self._failed(response, is_unclear=False)
        if 400 <= status < 500 and status not in _LATER:
            return Refused(status, self._text(response.body))
        # A runner that is not ready made no bot; one that fails may have done so after making it.
        return self._failed(response, is_unclear=status == 408 or (status >= 500 and status != 503))

    async def _look_up(self, bot: BotState, *, is_known: bool = False) -> Launched | UnknownToRunner | None:
        """Ask whether the runner has the bot, and with which id; None if the response does not say."""
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
        return UnknownToRunner() if not results and not is_known else None

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
            f"The runner responded with status {status}.",
            is_unclear=is_unclear,
            status_code=status,
            response=self._text(response.body),
            retry_after=retry_after(response.headers),
        )

    def _text(self, body: bytes) -> str:
        """Return the start of a response. If the runner repeats the API key in it, the key is masked."""
        text = body.decode("utf-8", "replace").replace("\x00", "\ufffd")
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return text[:_RESPONSE_CHARACTERS]

    async def _settle(self, claimed: ClaimedBot, outcome: Outcome) -> None:
        bot_id = claimed.bot.state.id
        async with transaction(self._sessions) as session:
            bot = await states.lock_leased(session, bot_id, claimed.lease.token)
            transitions = []
            if bot is not None:
                transitions = lifecycle.settle(
                    bot, outcome, utcnow(), was_unclear=claimed.bot.state.may_be_handed_over
                )
            for transition in transitions:
                await service.apply_transitions(session, [transition])
            if bot is not None and lifecycle.needs_judging(bot, outcome):
                await self._judge_later(session, bot)
        outcome_label = _OUTCOME_LABELS[type(outcome)]
        if not transitions:
            log.warning("bot_lease_lost", bot_id=bot_id, outcome=outcome_label)
            return
        metrics.BOT_LAUNCHES.labels(outcome_label).inc()
        after = transitions[-1].after
        level = log.info if isinstance(outcome, Launched | UnknownToRunner) else log.warning
        level(
            "bot_hand_over",
            bot_id=bot_id,
            outcome=outcome_label,
            status_code=getattr(outcome, "status_code", None),
            state=_shown(after),
        )


def _shown(bot: BotState | None) -> str:
    return shown_state(bot.state) if bot is not None else "deleted"


def _order(bot: BotWithSettings, *, with_join_at: bool) -> dict[str, Any]:
    """Return the body for the runner. `join_at` is left out if it has passed: the bot joins at once."""
    state = bot.state
    ours: dict[str, Any] = {
        "meeting_url": state.meeting_url,
        "bot_name": bot.bot_name,
        "deduplication_key": state.id,
        "metadata": state.metadata,
        "join_at": isoformat(state.join_at) if with_join_at else None,
    }
    # Rows of the first release may contain nulls, which a runner refuses.
    theirs = {name: value for name, value in drop_nulls(bot.bot_settings).items() if name not in ours}
    return theirs | {name: value for name, value in ours.items() if value is not None}


def _is_duplicate(response: Response) -> bool:
    """Whether the runner already has a bot with this key (Attendee responds with a 400 and a text)."""
    words = response.body.lower()
    return response.status == 409 or (
        response.status == 400 and b"deduplication" in words and b"already" in words
    )


def _runner_bot_id(found: dict[str, Any]) -> str | None:
    value = found.get("id")
    # PostgreSQL stores neither NUL nor half of a surrogate pair, and the bot would never be settled.
    return value[:_LONGEST_RUNNER_ID] if isinstance(value, str) and value.isprintable() else None
