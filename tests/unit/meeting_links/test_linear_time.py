"""Linear time for hostile texts, by the structure of the patterns.

bench/meeting_urls.py measures the time.
"""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from app.meeting_links import extract, platforms, teams, urls, wrappers
from app.meeting_links.extract import (
    find_all_links,
)
from app.meeting_links.urls import split_url
from bench.meeting_urls import HOSTILE

# --- linear time, by structure (bench/meeting_urls.py measures it)


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    modules: tuple[ModuleType, ...] = (extract, platforms, teams, urls, wrappers)
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield f"{module.__name__}.{name}", value


def repeats(tree: Any) -> Iterator[tuple[int, Any]]:
    """Pairs (most repetitions, body), one for every repeat in a parsed pattern."""
    for operator, argument in tree:
        if str(operator) in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            yield argument[1], argument[2]
        for part in argument if isinstance(argument, (tuple, list)) else ():
            for branch in part if isinstance(part, list) else [part]:
                if hasattr(branch, "data"):
                    yield from repeats(branch)


def can_backtrack_badly(pattern: re.Pattern[str]) -> bool:
    """Test whether a long repeat contains another repeat.

    A text can then be divided between them in many ways.


    `(?:\\.[a-z]+)*` is fine: a dot must come before every round, which leaves one way.
    """
    from re import _parser

    return any(
        most > 1000 and list(repeats(body)) and str(next(iter(body))[0]) != "LITERAL"
        for most, body in repeats(_parser.parse(pattern.pattern, pattern.flags))
    )


@pytest.mark.parametrize(
    ("name", "pattern"), list(patterns()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_pattern_can_backtrack_badly(name: str, pattern: re.Pattern[str]) -> None:
    assert not can_backtrack_badly(pattern), name


@pytest.mark.parametrize("bad", ["(a+)+", "(?:a+)*b", "x(?:a*|b)*", "(?:(?:ab)*c*)+", "(a|(b+))*"])
def test_a_pattern_that_can_backtrack_badly_is_noticed(bad: str) -> None:
    assert can_backtrack_badly(re.compile(bad))


@pytest.mark.parametrize("name", HOSTILE)
def test_twice_the_hostile_text_is_twice_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    characters = 0

    def counted(text: str) -> object:
        nonlocal characters
        characters += len(text)
        return split_url(text)

    monkeypatch.setattr(extract, "split_url", counted)
    work = []
    for size in (10_000, 20_000, 40_000):
        characters = 0
        text = HOSTILE[name](size)
        assert size * 0.75 < len(text) <= size, "else the measure says nothing"
        find_all_links(text, scheme_less=True)
        work.append(characters)
    assert work[2] <= 40 * 40_000
    assert work[2] <= 2.3 * work[1] + 5000
    assert work[1] <= 2.3 * work[0] + 5000
