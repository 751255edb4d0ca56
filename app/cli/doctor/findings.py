"""Findings, which are the lines of the report."""

from dataclasses import dataclass

# The time limit of one check of the network or the database.
TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. `text` says how to fix what is wrong.

    A note is fine, but the operator may want to know it. A warning needs attention, although the service works.
    """

    subject: str
    is_fine: bool
    text: str
    is_note: bool = False
    is_warning: bool = False

    @property
    def level(self) -> str:
        """ok, note, warn or WRONG."""
        if not self.is_fine:
            return "WRONG"
        return "warn" if self.is_warning else "note" if self.is_note else "ok"

    def __str__(self) -> str:
        return f"{self.level:5} {self.subject}: {self.text}"

    def as_dict(self) -> dict[str, str]:
        return {"level": self.level.lower(), "subject": self.subject, "text": self.text}


def note(subject: str, text: str) -> Finding:
    return Finding(subject, True, text, is_note=True)


def warning(subject: str, text: str) -> Finding:
    return Finding(subject, True, text, is_warning=True)
