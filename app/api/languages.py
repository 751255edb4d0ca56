"""The language of web pages."""

from fastapi import Request

from app.core.languages import Language, language_of

_KNOWN = {"en", "fr"}


def visitor_language(request: Request) -> Language:
    """Return English or French, as the browser prefers (RFC 9110, section 12.5.4)."""
    wanted: list[tuple[float, int, Language]] = []
    for place, part in enumerate(request.headers.get("accept-language", "")[:500].split(",")):
        tag, _, parameter = part.partition(";")
        language = tag.strip().partition("-")[0].lower()
        name, _, quality = parameter.partition("=")
        try:
            weight = float(quality) if name.strip().lower() == "q" else 1.0
        except ValueError:
            continue
        if language in _KNOWN and weight > 0:
            wanted.append((-weight, place, language_of(language)))
    return min(wanted)[2] if wanted else "en"
