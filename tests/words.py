"""Find the words of docs/words.toml that this project does not use, in names, comments, strings and pages.

`python -m tests.words` checks everything, as `make lint` does. With paths, it checks these:
`python -m tests.words app/sync docs/bots.md`.
"""

import io
import re
import sys
import token
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "words.toml"

# Where words are read in Python: f-strings are one token before Python 3.12, and several since.
_READ = {token.NAME, token.COMMENT, token.STRING, getattr(token, "FSTRING_MIDDLE", token.STRING)}
# In Markdown, what stands between backticks is code, and what is in angle brackets or after `](` an address.
_FENCE = re.compile(r"\s*(```|~~~)")
_MARKDOWN_CODE = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|https?://\S+")


@dataclass(frozen=True)
class Word:
    """One entry of the list: its `forms`, what to write instead, and where it is right after all.

    `unless`: patterns of text; a form inside one of them is fine. `allowed_in`: paths.
    """

    forms: tuple[str, ...]
    write: str
    unless: tuple[str, ...] = ()
    allowed_in: tuple[str, ...] = ()

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Also finds a form as a part of `snake_case`, `CamelCase` and `UPPER_CASE`."""
        return re.compile("|".join(_part(form) for form in self.forms))

    @cached_property
    def exceptions(self) -> re.Pattern[str] | None:
        return re.compile("|".join(self.unless), re.IGNORECASE) if self.unless else None

    def find_in(self, line: str, start: int, end: int) -> Iterator[re.Match[str]]:
        """The forms in a part of a line that are not in one of its exceptions."""
        for found in self.pattern.finditer(line, start, end):
            spans = [match.span() for match in self.exceptions.finditer(line)] if self.exceptions else []
            if not any(first <= found.start() and found.end() <= last for first, last in spans):
                yield found


def _part(form: str) -> str:
    lower, upper, capital = (re.escape(form) for form in (form.lower(), form.upper(), form.capitalize()))
    return (
        rf"(?<![A-Za-z])(?:{lower}|{capital})(?![a-z])"
        rf"|(?<=[a-z]){capital}(?![a-z])"
        rf"|(?<![A-Za-z]){upper}(?![A-Za-z])"
    )


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    text: str
    write: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: "{self.text}" -> write "{self.write}"'


@dataclass(frozen=True)
class WordList:
    """`identifiers`: names that stay as they are, since clients, operators or other libraries use them."""

    words: tuple[Word, ...]
    identifiers: frozenset[str]
    checked: tuple[str, ...]
    exempt: frozenset[str] = frozenset()

    @classmethod
    def load(cls, file: Path = LIST) -> "WordList":
        values: dict[str, Any] = tomllib.loads(file.read_text())
        words = [Word(**{name: _frozen(value) for name, value in word.items()}) for word in values["words"]]
        return cls(
            words=tuple(words),
            identifiers=frozenset(values["identifiers"]),
            checked=tuple(values["checked"]),
            exempt=frozenset(values["exempt"]),
        )

    @cached_property
    def kept(self) -> re.Pattern[str]:
        names = "|".join(re.escape(name) for name in sorted(self.identifiers, key=len, reverse=True))
        return re.compile(rf"(?<![A-Za-z0-9_])(?:{names})(?![A-Za-z0-9_])")

    def find(self, path: str, text: str) -> list[Finding]:
        """All findings in a file, by line. `path` is relative to the repository."""
        # What is kept is blanked out, in place.
        lines = [self.kept.sub(lambda found: " " * len(found[0]), line) for line in text.splitlines()]
        suspects = {number for number, line in enumerate(lines, start=1) if self._any.search(line)}
        if not suspects:
            return []
        words = [word for word in self.words if not path.startswith(word.allowed_in or ("\0",))]
        parts = _python_parts if path.endswith(".py") else _markdown_parts
        return [
            Finding(path, number, found[0], word.write)
            for number, start, end in parts(text, lines)
            if number in suspects
            for word in words
            for found in word.find_in(lines[number - 1], start, end)
        ]

    @cached_property
    def _any(self) -> re.Pattern[str]:
        """Finds every line with a form, and some others: a quick look before the exact one."""
        forms = [re.escape(form) for word in self.words for form in word.forms]
        return re.compile("|".join(forms), re.IGNORECASE)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# A line's number, and the columns between which words are read.
Part = tuple[int, int, int]


def _python_parts(text: str, lines: Sequence[str]) -> Iterator[Part]:
    for item in tokenize.generate_tokens(io.StringIO(text).readline):
        if item.type in _READ:
            (first, start), (last, end) = item.start, item.end
            for number in range(first, min(last, len(lines)) + 1):
                yield (
                    number,
                    start if number == first else 0,
                    end if number == last else len(lines[number - 1]),
                )


def _markdown_parts(_text: str, lines: Sequence[str]) -> Iterator[Part]:
    is_code = False
    for number, line in enumerate(lines, start=1):
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code:
            start = 0
            for code in _MARKDOWN_CODE.finditer(line):
                yield number, start, code.start()
                start = code.end()
            yield number, start, len(line)


def list_files(words: WordList) -> list[str]:
    """The Python files and pages of the repository that the list names in `checked`, without what is installed."""
    found = {file.relative_to(ROOT) for pattern in words.checked for file in ROOT.glob(pattern)}
    own = [file for file in found if not any(part.startswith((".", "node_modules")) for part in file.parts)]
    return sorted(name for name in (file.as_posix() for file in own) if name not in words.exempt)


def check(words: WordList, files: Sequence[str]) -> list[Finding]:
    return [finding for name in files for finding in words.find(name, (ROOT / name).read_text())]


def main(arguments: Sequence[str]) -> int:
    words = WordList.load()
    files = list_files(words)
    if arguments:
        wanted = tuple(Path(name).resolve().relative_to(ROOT).as_posix() for name in arguments)
        files = [name for name in files if any(Path(name).is_relative_to(path) for path in wanted)]
    findings = check(words, files)
    print(*findings, sep="\n" if findings else "", end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
