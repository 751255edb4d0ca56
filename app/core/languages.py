"""The languages of pages and mails."""

from typing import Literal

Language = Literal["en", "fr"]


def language_of(locale: str | None) -> Language:
    """Return the language of a locale: `fr`, `fr-CA` and `fr_FR` are French, everything else is English."""
    return "fr" if (locale or "").replace("_", "-").partition("-")[0].lower() == "fr" else "en"
