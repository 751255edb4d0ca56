"""ARCHITECTURE.md against the code: every folder is in the codemap, and only a table's writers write it."""

import re
from collections import defaultdict
from pathlib import Path

from app import models
from app.models import Base

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
TABLES = set(Base.metadata.tables)
CLASSES = {name: getattr(models, name).__tablename__ for name in models.__all__ if name != "Base"}

# Statements as text, SQLAlchemy's constructs, and COPY.
_SQL = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)")
_CONSTRUCT = re.compile(r"\b(?:insert|update|delete)\((\w+)\)")
_COPY = re.compile(r'copy_records_to_table\(\s*"(\w+)"')
# It rewrites the encrypted columns of whatever table has one, as ARCHITECTURE.md says.
_ANY_TABLE = {"keys"}


def writers_in_code() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for folder in ("app", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT).parts
            feature = "workers" if folder == "workers" else place[1].removesuffix(".py")
            text = path.read_text()
            # `_table = Model` is how a module names its own table.
            aliases = dict(re.findall(r"^(_\w+) = (\w+)$", text, re.MULTILINE))
            names = {
                *_SQL.findall(text),
                *_COPY.findall(text),
                *(CLASSES.get(aliases.get(name, name), "") for name in _CONSTRUCT.findall(text)),
            }
            for table in names & TABLES:
                found[table].add(feature)
    return found


def writers_in_page() -> dict[str, set[str]]:
    section = PAGE.split("## Tables and their writers")[1].split("\n## ")[0]
    found: dict[str, set[str]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) != 3 or not cells[0].startswith("`"):
            continue
        names = set(re.findall(r"`(\w+)`", cells[1].replace("`last_change_at`", "")))
        for table in re.findall(r"`(\w+)`", cells[0]):
            found[table] = {
                name
                for name in names
                if (ROOT / "app" / name).is_dir() or (ROOT / "app" / f"{name}.py").is_file()
            }
    return found


def test_every_table_is_listed_with_its_writers() -> None:
    listed = writers_in_page()
    assert set(listed) == TABLES
    code = writers_in_code()
    assert {table: code[table] - _ANY_TABLE for table in TABLES} == listed


def test_every_folder_is_in_the_codemap() -> None:
    section = PAGE.split("## Codemap")[1].split("\n## ")[0]
    listed = set(re.findall(r"`((?:app|workers|migrations)[\w/]*(?:\.py)?)`", section))
    folders = {
        f"app/{path.name}"
        for path in (ROOT / "app").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    modules = {f"app/{path.name}" for path in (ROOT / "app").glob("*.py") if path.name != "__init__.py"}
    assert folders | modules | {"workers", "migrations"} == listed


def test_the_pages_that_it_links_to_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
