"""The README knows every setting."""

import re
from pathlib import Path

import pytest

from app.settings import Settings

_README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme(name: str) -> None:
    assert f"`{name.upper()}`" in _README


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    rows = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \|", _README, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert named == {name.upper() for name in Settings.model_fields}
