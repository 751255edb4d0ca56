"""Limits of the stored texts of an event. Longer texts are cut, so that the sync continues."""

PLATFORM_UUID = 1_024
TITLE = 1_000
LOCATION = 2_000
DESCRIPTION = 8_000
URL = 4_096
NAME = 300
EMAIL = 320
ATTENDEES = 1_000
RAW_TEXT = 8_000
RAW_TOTAL_BYTES = 262_144


def cut(value: object, length: int) -> str | None:
    """Cut a text to `length` characters, without NULs and lone surrogates; None if it is not text."""
    if isinstance(value, str) and len(value) > length:
        value = value[: length - 1] + "…"
    return storable_text(value)


def storable_text(value: object) -> str | None:
    """As `cut`, in any length: for texts in which links are looked for, as half a link is another link."""
    if not isinstance(value, str):
        return None
    if "\x00" in value:
        value = value.replace("\x00", "")
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def storable_key(value: object) -> str | None:
    """Return an identifier that can be stored and indexed as it is; None for any other. It is never cut."""
    if isinstance(value, str) and value and cut(value, PLATFORM_UUID) == value:
        return value if len(value.encode()) <= PLATFORM_UUID else None
    return None


def id_of(item: object) -> str | None:
    """Return the `id` of a provider's object, if it can be stored."""
    return storable_key(item.get("id")) if isinstance(item, dict) else None
