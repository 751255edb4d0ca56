"""Output of commands, as text for people or as JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from app.core.clock import isoformat, utcnow

# The seconds of each unit, and its name.
_UNITS = ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s"))

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON line for each.")]
OneJsonLine = Annotated[bool, typer.Option("--json", help="Print one JSON line.")]


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print rows as a table with a header, or as one JSON line each."""
    if as_json:
        for row in rows:
            print_json(row)
    elif rows:
        print_table(rows)
    else:
        print("There are none.", file=sys.stderr)


def print_json(row: Mapping[str, Any]) -> None:
    print(json.dumps(row, default=isoformat))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    table = [
        list(rows[0]),
        *(["-" if value is None else str(shown(value)) for value in row.values()] for row in rows),
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_fields(fields: Mapping[str, str]) -> None:
    """Print one line for each name and its value."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{name.ljust(width)}  {value}")


def shown(value: Any) -> Any:
    return isoformat(value) if isinstance(value, datetime) else value


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least two: `90 s`, `12 min`, `30 h`."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: datetime | None) -> str:
    """Return a time with its distance from now."""
    if at is None:
        return "never"
    seconds = (at - utcnow()).total_seconds()
    distance = f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({distance})"
