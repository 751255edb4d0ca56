"""Alembic from code, as `calbridge migrate`, `calbridge up`, the tests and `/readyz` use it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations

NEWER_SCHEMA = (
    "The schema is at revision {}, which a newer release than this one has made; this one works with it."
)


def _config(database_url: str | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    if database_url is not None:
        config.attributes["database_url"] = database_url
    return config


def upgrade_to_head(database_url: str) -> str | None:
    """Bring the schema to the newest revision.

    It blocks and starts its own event loop: call it in a thread.

    A schema of a newer release is left as it is, since this code can work with it. Returns that schema's revision,
    otherwise None.
    """
    config = _config(database_url)
    command.upgrade(config, "head")
    newer: str | None = config.attributes.get("newer_revision")
    return newer


def head_revision() -> str | None:
    """Return the newest revision that this code has."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def is_behind(revision: str | None) -> bool:
    """Whether a schema at this revision (None: no revision) lacks migrations that this code has.

    A revision that this code does not have comes from a newer release, which includes all of its migrations.
    """
    if revision is None:
        return True
    return is_known(revision) and revision != head_revision()


def is_known(revision: str) -> bool:
    """Whether this code has the migration."""
    return any(
        script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions()
    )
