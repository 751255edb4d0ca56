"""`calbridge outbox`: pending and failed deliveries, mails and bots."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer

from app.cli.database import in_transaction
from app.cli.errors import CommandFailed
from app.cli.output import OneJsonLine, moment, print_json, print_table
from app.core.db import Session
from app.environment import command_settings


def outbox(
    project_id: Annotated[
        str | None, typer.Option("--project", metavar="PROJECT_ID", help="proj_...; all projects without it.")
    ] = None,
    as_json: OneJsonLine = False,
) -> None:
    """Show pending and failed webhook deliveries, mails and bots, and the endpoints with most of them."""
    from app.bots.backlog import summarize_bots
    from app.invitations.backlog import summarize_mails
    from app.projects.service import project_exists
    from app.webhooks.backlog import summarize_deliveries

    lead = timedelta(seconds=command_settings("database_url").bot_launch_lead_seconds)

    async def load(session: Session) -> dict[str, Any]:
        if project_id is not None and not await project_exists(session, project_id):
            raise CommandFailed(f"There is no project {project_id}. `calbridge project list` shows them all.")
        return {
            "deliveries": _flat(asdict(await summarize_deliveries(session, project_id))),
            "mails": _flat(asdict(await summarize_mails(session, project_id))),
            "bots": _flat(asdict(await summarize_bots(session, project_id, lead=lead))),
        }

    found = in_transaction(load)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    return {**summary.pop("total"), **summary}


def _print(found: dict[str, Any]) -> None:
    print_table([{"outbox": name, **_counts(found[name])} for name in ("deliveries", "mails", "bots")])
    deliveries, mails, bots = found["deliveries"], found["mails"], found["bots"]
    notes = []
    if deliveries["on_hold"]:
        notes.append(f"{deliveries['on_hold']} deliveries wait for endpoints that are disabled.")
    if mails["unknown"]:
        notes.append(f"{mails['unknown']} mails ended as unknown: docs/messages.md says what to do.")
    if mails["last_error"]:
        notes.append(f"The last error of a mail: {mails['last_error']}")
    if bots["scheduled"]:
        notes.append(f"{bots['scheduled']} bots are scheduled for later.")
    if notes:
        print("", *notes, sep="\n")
    if deliveries["endpoints"]:
        print("\nEndpoints with the most pending and failed deliveries:")
    for endpoint in deliveries["endpoints"]:
        print(_endpoint(endpoint))


def _counts(counts: dict[str, Any]) -> dict[str, Any]:
    return {
        "pending": counts["pending"],
        "in flight": counts["in_flight"],
        "failed": counts["failed"],
        "failed in 24 h": counts["failed_last_day"],
        "oldest": _moment(counts["oldest_at"]),
        "next attempt": _moment(counts["next_attempt_at"]),
    }


def _moment(at: Any) -> str | None:
    return None if at is None else moment(at)


def _endpoint(endpoint: dict[str, Any]) -> str:
    owner = f"{endpoint['webhook_id']} of {endpoint['project_id']}, {endpoint['origin']}"
    lines = [f"  {owner}: {endpoint['pending']} pending, {endpoint['failed_last_day']} failed in 24 h"]
    if not endpoint["is_active"]:
        lines.append("disabled: PATCH is_active true sends what is pending")
    elif endpoint["next_attempt_at"] is not None:
        lines.append(f"next attempt {moment(endpoint['next_attempt_at'])}")
    if endpoint["failing_since"] is not None:
        lines.append(f"failing since {moment(endpoint['failing_since'])}")
    if endpoint["last_error"] is not None:
        lines.append(f"last error: {endpoint['last_error']}")
    return "\n    ".join(lines)
