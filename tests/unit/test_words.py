"""The words that are not used (docs/words.toml), and the check itself."""

import pytest

from tests import words
from tests.words import LIST, Word, WordList

LISTED = WordList.load()


def sample(**fields: object) -> WordList:
    values = {"forms": ("told", "again_at"), "write": "notified", **fields}
    return WordList((Word(**values),), frozenset({"told_at"}), ("app",))  # type: ignore[arg-type]


def found(text: str, path: str = "app/x.py", **fields: object) -> list[tuple[int, str]]:
    return [(finding.line, finding.text) for finding in sample(**fields).find(path, text)]


def test_the_tree_has_none_of_the_words() -> None:
    files = words.list_files(LISTED)
    assert files
    assert [str(finding) for finding in words.check(LISTED, files)] == []


def test_every_word_says_what_to_write() -> None:
    assert all(word.forms and word.write for word in LISTED.words)
    forms = [form for word in LISTED.words for form in word.forms]
    assert len(forms) == len(set(forms))


def test_the_message_names_the_place_and_the_word_to_write() -> None:
    (finding,) = sample().find("app/x.py", "x = 1\nis_told = 2\n")
    assert str(finding) == 'app/x.py:2: "told" -> write "notified"'


@pytest.mark.parametrize(
    "line",
    [
        "told = 1",
        "is_told = 1",
        "find_told_instances()",
        "class MailTold: ...",
        "class ToldMail: ...",
        "TOLD_ONCE = 1",
        "x = 1  # Nobody was told.",
        '"""Told once."""',
        'log.info("guest_told")',
        'f"{x} was told"',
        "retry.again_at = 1",
    ],
)
def test_words_are_found_in_names_comments_and_strings(line: str) -> None:
    ((number, _),) = found(line + "\n")
    assert number == 1


@pytest.mark.parametrize(
    "line", ["untoldable = 1", "stoldy = 1", "TOLDO = 1", "x = 1  # toldness", "told_at = 1"]
)
def test_parts_of_other_words_and_kept_identifiers_are_fine(line: str) -> None:
    assert found(line + "\n") == []


def test_a_line_of_a_long_string_has_its_own_number() -> None:
    assert found('x = """one\ntwo told\n"""\n') == [(2, "told")]


def test_code_in_a_page_is_no_prose() -> None:
    page = "Told.\n`told` [x](told.md) https://x.test/told\n```sh\ntold\n```\nis told\n"
    assert found(page, "docs/x.md") == [(1, "Told"), (6, "told")]


def test_exceptions_are_texts_and_paths() -> None:
    assert found("x = 1  # I was told so\n", unless=("was told so",)) == []
    assert found("x = 1  # I was told it\n", unless=("was told so",)) == [(1, "told")]
    assert found("told = 1\n", path="app/rsvp/texts.py", allowed_in=("app/rsvp/",)) == []


def test_the_command_checks_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert words.main([]) == 0
    assert capsys.readouterr().out == ""
    assert words.main([str(LIST.parent / "glossary.md")]) == 0
