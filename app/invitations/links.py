"""Signed RSVP links. A token names calendar, event, instance and attendee, and has no expiry time.

The event decides how long a token is valid (app/rsvp/), because links must work until the meeting. Keys are derived
from CREDENTIALS_ENCRYPTION_KEYS and rotate with them: the first one signs, all are accepted.
"""

import hashlib
import hmac
from typing import NamedTuple
from urllib.parse import urlencode

from itsdangerous import BadData, URLSafeSerializer

_PURPOSE = b"calbridge rsvp links"
_SALT = "rsvp-v1"
_LONGEST = 2_000


class Subject(NamedTuple):
    """The guest and the event of a link. `recurrence_key` is '' for a single event or a whole series."""

    calendar_id: str
    uid: str
    recurrence_key: str
    email: str


class RsvpTokens:
    def __init__(self, keys: list[str]) -> None:
        derived = [hmac.new(key.encode(), _PURPOSE, hashlib.sha256).digest() for key in keys]
        self._serializer = URLSafeSerializer(
            derived[::-1],  # the last one signs
            salt=_SALT,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def sign(self, subject: Subject) -> str:
        token = self._serializer.dumps(list(subject))
        return token if isinstance(token, str) else token.decode()

    def read(self, token: str) -> Subject | None:
        """Return the subject of a token; None for a text that `sign` did not make."""
        if not token or len(token) > _LONGEST:
            return None
        try:
            value = self._serializer.loads(token)
        except (BadData, ValueError):
            return None
        is_ours = isinstance(value, list) and len(value) == 4 and all(isinstance(part, str) for part in value)
        return Subject(*value) if is_ours else None

    def links(self, subject: Subject, app_url: str) -> tuple[str, str, str]:
        """Return the links to accept, to accept tentatively and to decline."""
        token = self.sign(subject)

        def link(action: str) -> str:
            return f"{app_url}/rsvp/?{urlencode({'token': token, 'action': action})}"

        return link("accepted"), link("tentative"), link("declined")

    def __repr__(self) -> str:
        return "<RsvpTokens>"
