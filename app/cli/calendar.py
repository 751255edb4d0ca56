"""`calbridge calendar`: the sync state of one calendar, and a sync on request."""

import asyncio
import sys
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from app.calendars.errors import CalendarDisconnected
from app.cli.database import with_database
from app.cli.errors import CommandFailed
from app.cli.output import OneJsonLine, duration, moment, print_fields, print_json
from app.core.db import Sessions, reading, transaction
from app.core.errors import NotFound
from app.core.wakeups import REDIS_UNAVAILABLE, WakeUps, connect_redis
from app.environment import command_settings
from app.settings import Settings

_LOOK_EVERY_SECONDS = 0.2
_UNKNOWN = "There is no calendar {}. GET /api/v1/calendars lists those of a project; the id of a deleted calendar is not kept."

calendar_cli = typer.Typer(
    help="One calendar: the state of its syncs, and a sync on request.", no_args_is_help=True
)

CalendarId = Annotated[str, typer.Argument(metavar="CAL_ID", help="cal_...")]


@calendar_cli.command("show")
def calendar_show(calendar_id: CalendarId, as_json: OneJsonLine = False) -> None:
    """Show the state of a calendar's syncs: last and next sync, claim, cursor, failure, push channel."""
    from app.calendars.inspection import inspect_calendar

    settings = command_settings("database_url")

    async def load(sessions: Sessions) -> dict[str, Any]:
        try:
            async with reading(sessions) as session:
                return asdict(await inspect_calendar(session, settings, calendar_id))
        except NotFound:
            raise CommandFailed(_UNKNOWN.format(calendar_id)) from None

    _print(with_database(settings, load), as_json=as_json)


@calendar_cli.command("sync")
def calendar_sync(
    calendar_id: CalendarId,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the sync has ended; exit code 1 if it failed.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", min=1)] = 300,
    as_json: OneJsonLine = False,
) -> None:
    """Make a calendar due and wake the workers.

    The pauses of POST /calendars/{id}/sync apply: syncs by hand begin 5 seconds apart, and further while they fail.
    """
    settings = command_settings("database_url")

    async def run(sessions: Sessions) -> tuple[str, dict[str, Any]]:
        return await _sync(sessions, settings, calendar_id, within_seconds=timeout if wait else None)

    result, found = with_database(settings, run)
    if as_json:
        print_json({"result": result, **found})
    elif wait:
        print(f"The sync {result}.")
        _print(found, as_json=False)
    else:
        print(f"The sync of {calendar_id} is due: {moment(found['next_sync_at'])}.")
    if result == "failed":
        raise typer.Exit(1)


async def _sync(
    sessions: Sessions, settings: Settings, calendar_id: str, *, within_seconds: float | None
) -> tuple[str, dict[str, Any]]:
    """Return the result (`queued` if there is no time to wait) and the calendar's state."""
    from app.calendars.inspection import find_sync_result, inspect_calendar, request_sync_by_hand

    try:
        async with transaction(sessions) as session:
            requested = await request_sync_by_hand(session, calendar_id)
        await _wake_workers(settings)
        if within_seconds is None:
            async with reading(sessions) as session:
                return "queued", asdict(await inspect_calendar(session, settings, calendar_id))
        deadline = time.monotonic() + within_seconds
        while True:
            async with reading(sessions) as session:
                result, found = await find_sync_result(session, settings, calendar_id, requested)
            if result is not None:
                return result, asdict(found)
            if time.monotonic() > deadline:
                raise CommandFailed(
                    f"The sync has not ended within {duration(within_seconds)}. It stays due "
                    f"({moment(found.next_sync_at)}). `calbridge doctor` says whether a worker runs."
                )
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
    except NotFound:
        raise CommandFailed(_UNKNOWN.format(calendar_id)) from None
    except CalendarDisconnected as err:
        raise CommandFailed(" ".join(err.fields["non_field_errors"])) from None


async def _wake_workers(settings: Settings) -> None:
    if settings.redis_url is None:
        _note_no_wakeup(settings, "REDIS_URL is not set")
        return
    wakeups = WakeUps(connect_redis(settings.required_redis_url()))
    try:
        await wakeups.ping()
        await wakeups.wake("syncs")
    except REDIS_UNAVAILABLE:
        _note_no_wakeup(settings, "Redis cannot be used")
    finally:
        await wakeups.aclose()


def _note_no_wakeup(settings: Settings, reason: str) -> None:
    tick = duration(settings.scheduler_tick_seconds)
    print(f"{reason}, so the workers are not woken. They look for due work every {tick}.", file=sys.stderr)


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    fields = {
        "calendar": f"{found['calendar_id']} ({found['platform']})",
        "project": f"{found['project_id']} ({found['project_name']})",
        "state": _state(found),
        "events": f"{found['events']}, and {found['deleted_events']} deleted ones that are kept",
    }
    if found["platform"] != "local":
        fields |= {
            "last success": moment(found["last_successful_sync_at"]),
            "last attempt": moment(found["last_attempted_sync_at"]),
            "next sync": _next_sync(found),
            "claimed": f"by a worker, until {moment(found['claimed_until'])}"
            if found["claimed_until"]
            else "no",
            "failure": _failure(found),
            "window": _window(found),
            "cursor": _cursor(found),
            "push channel": _push(found),
        }
    print_fields(fields)


def _state(found: dict[str, Any]) -> str:
    why = found["connection_failure_data"]
    if found["state"] == "connected" or why is None:
        return str(found["state"])
    return f"{found['state']} at {why.get('timestamp')}: {why.get('code')}, {why.get('error')}"


def _next_sync(found: dict[str, Any]) -> str:
    if found["next_sync_at"] is None:
        return "none, since the calendar is disconnected"
    held = f"; held by an outage of {found['outage_scope']}" if found["outage_scope"] else ""
    return moment(found["next_sync_at"]) + held


def _failure(found: dict[str, Any]) -> str:
    if found["failure_code"] is None:
        held_back = found["held_back_events"]
        return f"none, but {held_back} deletions wait for a second response" if held_back else "none"
    since = f", since {moment(found['failing_since'])}" if found["failing_since"] else ""
    return f"{found['failure_code']}, {found['failure_count']} in a row{since}: {found['failure_message']}"


def _window(found: dict[str, Any]) -> str:
    days = found["window"]
    promised = f"{days['past_days']} days back, {days['future_days']} ahead"
    if found["covered_until"] is None:
        return f"{promised}; nothing is covered yet"
    return f"{promised}; covered from {moment(found['covered_from'])} until {moment(found['covered_until'])}"


def _cursor(found: dict[str, Any]) -> str:
    if found["cursor_age_seconds"] is None:
        return "none: the next sync reads everything"
    return f"{duration(found['cursor_age_seconds'])} old"


def _push(found: dict[str, Any]) -> str:
    if found["push_channel"] is None:
        due = found["push_due_at"]
        return f"none; to be opened {moment(due)}" if due is not None else "none"
    verified = "a notification has arrived" if found["push_verified"] else "no notification has arrived yet"
    expires = f", expires {moment(found['push_expires_at'])}" if found["push_expires_at"] else ""
    return f"{found['push_channel']}, {verified}{expires}"
