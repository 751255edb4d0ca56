"""Public ids in paths.

A malformed id is a 404 and not a 400, so the pattern in OpenAPI is not enforced.
"""

import re
from functools import partial
from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator

from app.core.errors import NotFound
from app.core.ids import Prefix


def require_id(value: str, *, prefix: Prefix, what: str) -> str:
    """Return `value` if it has the form of such an id.

    Raises NotFound("<what> not found") without a query.
    """
    if not re.fullmatch(prefix + "_[A-Za-z0-9]{16}", value):
        raise NotFound(f"{what} not found")
    return value


def _path(prefix: Prefix) -> str:
    """Return the metadata of a path parameter, with the id's pattern."""
    parameter: str = Path(json_schema_extra={"pattern": f"^{prefix}_[A-Za-z0-9]{{16}}$"})
    return parameter


def _is(prefix: Prefix, what: str) -> AfterValidator:
    return AfterValidator(partial(require_id, prefix=prefix, what=what))


BotId = Annotated[str, _path("bot"), _is("bot", "Bot")]
CalendarId = Annotated[str, _path("cal"), _is("cal", "Calendar")]
DeliveryId = Annotated[str, _path("dlv"), _is("dlv", "Webhook delivery")]
EventId = Annotated[str, _path("evt"), _is("evt", "Calendar event")]
InvitationId = Annotated[str, _path("msg"), _is("msg", "Invitation")]
WebhookId = Annotated[str, _path("webhook"), _is("webhook", "Webhook")]
