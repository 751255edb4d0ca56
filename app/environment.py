"""The settings of commands: those of the environment, or the servers of a running `calbridge up`."""

import fcntl
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.settings import Settings, SettingsError, load_settings, misspelt_settings

DEFAULT_DATA_DIR = Path(".data")
# Files in the data folder of `calbridge up`. RUNNING_FILE holds secrets, and only its owner can read it.
LOCK_FILE = "up.lock"
RUNNING_FILE = "up.json"


@dataclass(frozen=True)
class Running:
    """The servers and keys of a running `calbridge up`."""

    pid: int
    base_url: str
    database_url: str
    redis_url: str
    credentials_encryption_keys: str
    # An `up` of an older release does not write these.
    app_url: str | None = None
    demo_feed_url: str | None = None


def running_up(data_dir: Path) -> Running | None:
    """Return the `calbridge up` that runs on this data folder and whose database is ready, or None."""
    with suppress(OSError), (data_dir / LOCK_FILE).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Running(**json.loads((data_dir / RUNNING_FILE).read_text()))
    return None


def command_settings(*needed: str) -> Settings:
    """Return the settings, with the servers of a running `up` where none are configured.

    `needed`: database_url, redis_url, fernet_keys. Raises SettingsError with a line for each that is not set.
    """
    use_running_servers()
    settings = load_settings()
    if settings.demo_feed_url is None:  # otherwise `up` started this process and has printed the warnings
        warn_about_misspelt_settings()
    missing = []
    for name in needed:
        try:
            getattr(settings, f"required_{name}")()
        except SettingsError as err:
            missing.append(str(err))
    if missing:
        raise SettingsError("\n".join(missing))
    return settings


def warn_about_misspelt_settings() -> None:
    for sentence in misspelt_settings():
        print(f"Warning: {sentence}", file=sys.stderr)


def use_running_servers() -> None:
    """Use the servers of a running `calbridge up` if no settings name others."""
    try:
        settings = load_settings()
    except SettingsError:
        return  # the caller loads the settings again and reports the error
    if settings.database_url is not None or settings.redis_url is not None:
        return
    found = running_up(DEFAULT_DATA_DIR)
    if found is not None:
        print(f"(using the `calbridge up` that runs on {DEFAULT_DATA_DIR})", file=sys.stderr)
        os.environ["DATABASE_URL"] = found.database_url
        os.environ["REDIS_URL"] = found.redis_url
        # A worker that is started here reads the same feed, and its mails link to the same API.
        if found.demo_feed_url is not None:
            os.environ["DEMO_FEED_URL"] = found.demo_feed_url
        if found.app_url is not None and "app_url" not in settings.model_fields_set:
            os.environ["APP_URL"] = found.app_url
        if not settings.fernet_keys:
            os.environ["CREDENTIALS_ENCRYPTION_KEYS"] = found.credentials_encryption_keys
