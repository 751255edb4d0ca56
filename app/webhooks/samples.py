"""Test messages that a client requests. The API's process sends them at once.

An endpoint can be any public host, so tests are limited: for each project by the minute over all processes (in Redis),
and by how many are under way in this process.
"""

import math
from collections import Counter
from uuid import uuid4

from limits import RateLimitItemPerMinute

from app.core.clock import utcnow
from app.core.crypto import SealBroken, SecretBox
from app.core.errors import TooManyRequests
from app.core.ratelimit import RateLimiter
from app.models import WebhookSubscription
from app.settings import Settings
from app.webhooks.delivery import send, tls_context, webhook_client
from app.webhooks.endpoint_secrets import open_secrets
from app.webhooks.errors import SecretLost
from app.webhooks.payloads import Trigger, sample_body
from app.webhooks.schemas import TestResult

PER_MINUTE = 30
AT_ONCE = 16
AT_ONCE_OF_PROJECT = 4

_PER_MINUTE = RateLimitItemPerMinute(PER_MINUTE)


class SampleSender:
    """Sends test messages; one per process. Call `aclose` at the end."""

    def __init__(self, settings: Settings, box: SecretBox, redis_url: str) -> None:
        self._settings = settings
        self._box = box
        self._limiter = RateLimiter(redis_url, prefix="webhook_tests")
        self._client = webhook_client(settings, verify=tls_context())
        self._under_way: Counter[str] = Counter()

    async def send(self, webhook: WebhookSubscription) -> TestResult:
        """Send a sample of the webhook's first trigger, outside any transaction. It is not logged.

        Raises SecretLost, TooManyRequests.
        """
        try:
            secrets = open_secrets(self._box, webhook.id, webhook.secrets_sealed)
        except SealBroken:
            raise SecretLost from None
        project_id = webhook.project_id
        if self._under_way[project_id] >= AT_ONCE_OF_PROJECT or self._under_way.total() >= AT_ONCE:
            sentence = "Other tests are still waiting for their responses. Try again when they have ended."
            raise TooManyRequests(sentence, retry_after=math.ceil(self._settings.webhook_timeout_seconds))
        self._under_way[project_id] += 1
        try:
            if not await self._limiter.hit(_PER_MINUTE, project_id):
                sentence = f"A project may send {PER_MINUTE} tests a minute. Try again in a minute."
                raise TooManyRequests(sentence, retry_after=60)
            return await self._send(webhook, secrets)
        finally:
            self._under_way[project_id] -= 1
            if not self._under_way[project_id]:
                del self._under_way[project_id]

    async def _send(self, webhook: WebhookSubscription, secrets: list[str]) -> TestResult:
        trigger: Trigger = webhook.triggers[0]  # type: ignore[assignment] # only triggers are stored
        idempotency_key = str(uuid4())
        attempt = await send(
            self._client,
            self._settings,
            url=webhook.url,
            message_id=idempotency_key,
            body=sample_body(idempotency_key=idempotency_key, trigger=trigger, now=utcnow()),
            secrets=secrets,
        )
        return TestResult(
            status="success" if attempt.outcome == "success" else "failed",
            trigger=trigger,
            idempotency_key=idempotency_key,
            **attempt.record(),
        )

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._limiter.aclose()
