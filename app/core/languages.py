"""The languages of pages and mails."""

from typing import Literal

Language = Literal["en", "fr"]


def language_of(locale: str | None) -> Language:
    """Choose French for `fr`, `fr-CA` or `fr_FR`, and English for everything else."""
    return "fr" if (locale or "").replace("_", "-").partition("-")[0].lower() == "fr" else "en"
