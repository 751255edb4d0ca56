"""The signing secrets of an endpoint, encrypted as they are stored.

Stored form: [{"secret": base64, "until": ISO 8601 or null}, ...], the current secret first, then those that were
rotated out and still sign until then.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from app.core.clock import isoformat, utcnow
from app.core.crypto import SealBroken, SecretBox
from app.webhooks.signing import new_secret

_OLD_SECRET_SIGNS_FOR = timedelta(hours=24)
_MOST_SECRETS = 5


def secrets_context(endpoint_id: str) -> str:
    """Return the encryption context that ties sealed secrets to their endpoint."""
    return f"webhook_subscriptions:{endpoint_id}"


def create_secret(box: SecretBox, endpoint_id: str) -> tuple[str, bytes]:
    """Create the first secret of an endpoint; return it and the sealed secrets."""
    secret = new_secret()
    return secret, box.seal(secrets_context(endpoint_id), [{"secret": secret, "until": None}])


def rotate_secret(box: SecretBox, endpoint_id: str, sealed: bytes) -> tuple[str, bytes]:
    """Create a new current secret; return it and all sealed secrets.

    The old one signs for another 24 hours.

    Old secrets that can no longer be decrypted are dropped, so that rotation works after a lost encryption key.
    """
    now = utcnow()
    secret = new_secret()
    kept: list[dict[str, Any]] = [{"secret": secret, "until": None}]
    with suppress(SealBroken):
        current, *rotated = box.open(secrets_context(endpoint_id), sealed)
        kept.append({**current, "until": isoformat(now + _OLD_SECRET_SIGNS_FOR)})
        kept.extend(old for old in rotated if old["until"] > isoformat(now))
    return secret, box.seal(secrets_context(endpoint_id), kept[:_MOST_SECRETS])


def open_secrets(box: SecretBox, endpoint_id: str, sealed: bytes) -> list[str]:
    """Return the secrets that sign now, the current one first. Raises SealBroken."""
    now = utcnow()
    return [
        kept["secret"]
        for kept in box.open(secrets_context(endpoint_id), sealed)
        if kept["until"] is None or datetime.fromisoformat(kept["until"]) > now
    ]
