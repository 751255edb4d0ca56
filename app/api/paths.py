"""Public ids in paths."""

import re

from app.core.errors import NotFound
from app.core.ids import Prefix


def require_id(value: str, *, prefix: Prefix, what: str) -> str:
    """`value` if it can be an id of this kind. Raises NotFound("<what> not found"): no need to ask the database."""
    if not re.fullmatch(prefix + "_[A-Za-z0-9]{16}", value):
        raise NotFound(f"{what} not found")
    return value


def id_pattern(prefix: Prefix) -> dict[str, str]:
    """The id's form for OpenAPI. It is not enforced there: a wrong id is a 404 and not a 400."""
    return {"pattern": f"^{prefix}_[A-Za-z0-9]{{16}}$"}
