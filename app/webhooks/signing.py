"""Pure: the signature headers of a delivery, in Attendee's scheme and in that of Standard Webhooks.

docs/reference/http-api.md ("Signatures") and https://www.standardwebhooks.com describe them.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

from standardwebhooks import Webhook

MESSAGE_ID_HEADER = "webhook-id"

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """Create a secret: base64 of 32 random bytes.

    Standard Webhooks libraries also take it with `whsec_` before it.
    """
    return base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def body_signature(secret: str, body: bytes) -> str:
    """Sign a body in Attendee's scheme: base64(HMAC-SHA256(base64-decoded secret, body))."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.digest(key, body, hashlib.sha256)).decode()


def signature_headers(
    keys: Sequence[str], *, message_id: str, attempted_at: datetime, body: bytes
) -> dict[str, str]:
    """Return X-Webhook-Signature by the first secret, and the Standard Webhooks headers by all.

    `attempted_at` is aware and in UTC: the library reads its wall clock as UTC, whatever its time zone.
    """
    text = body.decode()
    return {
        "X-Webhook-Signature": body_signature(keys[0], body),
        MESSAGE_ID_HEADER: message_id,
        "webhook-timestamp": str(int(attempted_at.timestamp())),
        "webhook-signature": " ".join(Webhook(key).sign(message_id, attempted_at, text) for key in keys),
    }
