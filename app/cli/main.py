"""The console command `calbridge` (README.md, "Run it in production").

Exit codes: 0 success, 1 failure (a sentence on stderr says why), 2 wrong settings or arguments.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.calendar import calendar_cli
from app.cli.database import in_transaction
from app.cli.errors import CommandFailed, database_failures
from app.cli.outbox import outbox
from app.cli.output import AsJson, print_rows
from app.core.db import Session
from app.core.errors import AppError
from app.environment import (
    DEFAULT_DATA_DIR,
    command_settings,
    use_running_servers,
    warn_about_misspelt_settings,
)
from app.settings import SettingsError


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"calbridge {version('calbridge')}")
        raise typer.Exit


cli = typer.Typer(
    name="calbridge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
project_cli = typer.Typer(help="Projects: each has its own calendars and keys.", no_args_is_help=True)
key_cli = typer.Typer(help="API keys of a project.", no_args_is_help=True)
cli.add_typer(project_cli, name="project")
cli.add_typer(key_cli, name="api-key")
cli.add_typer(calendar_cli, name="calendar")
cli.command()(outbox)


@cli.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Calendar sync and webhooks over one HTTP API. Settings are environment variables or lines of ./.env."""


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)]


@cli.command()
def up(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: Annotated[
        Path, typer.Option(help="Folder for the data of the embedded servers and the generated keys.")
    ] = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready.")] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart the API and the worker when the code changes.")
    ] = False,
) -> None:
    """Start PostgreSQL and Redis (unless configured), run migrations, and start the API and a worker."""
    from app.cli.devserver.up import run_up

    warn_about_misspelt_settings()
    run_up(host=host, port=port, data_dir=data_dir, as_json=as_json, reloads=reload)


@cli.command()
def migrate() -> None:
    """Bring the database's schema to the newest revision."""
    from migrations.revisions import NEWER_SCHEMA, upgrade_to_head

    url = command_settings("database_url").required_database_url()
    with database_failures():
        newer = upgrade_to_head(url)
    print(NEWER_SCHEMA.format(newer) if newer else "The schema is at the newest revision.", file=sys.stderr)


@cli.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(help="Number of processes.", min=1, max=256)] = 1,
) -> None:
    """Serve the HTTP API, without a worker."""
    import uvicorn

    from app.cli.devserver.up import check_port
    from app.cli.limits import allow_many_connections
    from app.cli.shared_metrics import shared_metrics
    from app.core.logging import configure_logging

    settings = command_settings("database_url", "redis_url", "fernet_keys")
    check_port(host, port)
    configure_logging(level=settings.log_level, json=settings.environment == "production")
    allow_many_connections()
    with shared_metrics() if workers > 1 else nullcontext():
        uvicorn.run(
            "app.main:create_app_from_env",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=True,
            timeout_graceful_shutdown=7,  # docker kills after 10 s
        )


@cli.command()
def worker(
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve this worker's /metrics and /healthz on this port.", min=0, max=65535),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address to serve them on.")] = "127.0.0.1",
) -> None:
    """Run a worker, including the scheduler. Any number of workers may run."""
    settings = command_settings("database_url", "redis_url", "fernet_keys")
    if metrics_port is not None:
        from app.cli.devserver.up import check_port

        check_port(metrics_host, metrics_port, names=("--metrics-host", "--metrics-port"))

    # libuv resolves host names in this many threads. A few slow look-ups must not block all others.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "64")
    import uvloop

    from app.core.logging import configure_logging
    from workers.process import run_worker
    from workers.status import serving_status

    configure_logging(level=settings.log_level, json=settings.environment == "production")

    async def run_until_signal() -> None:
        this = asyncio.current_task()
        assert this is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            # The first signal lets running work end. A second one cancels it.
            asyncio.get_running_loop().add_signal_handler(number, this.cancel)
        await run_worker(settings)

    with ExitStack() as stack:
        if metrics_port is not None:
            stack.enter_context(serving_status(metrics_host, metrics_port))
        stack.enter_context(suppress(asyncio.CancelledError))
        stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop)).run(run_until_signal())


@project_cli.command("create")
def project_create(name: Annotated[str, typer.Argument(help="A name for people.")]) -> None:
    """Create a project and its first API key. The key is shown only once."""
    from app.projects import service

    async def create(session: Session) -> dict[str, str]:
        return asdict(await service.create_project(session, name))

    print(json.dumps(in_transaction(create)))


@project_cli.command("list")
def project_list(as_json: AsJson = False) -> None:
    """List the projects, with the number of API keys that are not disabled."""
    from app.projects import service

    async def load(session: Session) -> list[dict[str, Any]]:
        return [asdict(row) for row in await service.list_projects(session)]

    print_rows(in_transaction(load), as_json=as_json)


@key_cli.command("list")
def api_key_list(
    project_id: Annotated[str | None, typer.Argument(help="proj_...; all projects if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """List API keys, with the times when each was created, last used (to the minute) and disabled."""
    from app.projects import service

    async def load(session: Session) -> list[dict[str, Any]]:
        return [asdict(row) for row in await service.list_api_keys(session, project_id)]

    print_rows(in_transaction(load), as_json=as_json)


@key_cli.command("create")
def api_key_create(
    project_id: Annotated[str, typer.Argument(help="proj_...")],
    name: Annotated[str, typer.Option(help="A name for people.")] = "key",
) -> None:
    """Create another API key for a project. The key is shown only once."""
    from app.projects import service

    async def create(session: Session) -> dict[str, str]:
        return asdict(await service.create_api_key(session, project_id, name))

    print(json.dumps(in_transaction(create)))


@key_cli.command("disable")
def api_key_disable(key_id: Annotated[str, typer.Argument(help="key_...")]) -> None:
    """Disable an API key. It stops working at once."""
    from app.projects import service

    async def disable(session: Session) -> dict[str, str]:
        await service.disable_api_key(session, key_id)
        return {"key_id": key_id, "state": "disabled"}

    print(json.dumps(in_transaction(disable)))


@cli.command()
def rotate_keys() -> None:
    """Encrypt all stored secrets with the first of CREDENTIALS_ENCRYPTION_KEYS.

    docs/operations.md lists the steps. You may interrupt this command and run it again, while the API and the workers run.
    """
    from app.cli.keys import rotate_all

    settings = command_settings("database_url", "fernet_keys")
    with database_failures():
        asyncio.run(rotate_all(settings))


@cli.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line with all findings.")] = False,
) -> None:
    """Check settings, servers, keys, mail, providers, calendars and webhooks, and explain fixes.

    The exit code is 1 if anything is WRONG. Notes and warnings do not change it.
    """
    from app.cli.doctor.examine import examine

    use_running_servers()
    findings = asyncio.run(examine())
    if as_json:
        is_fine = all(finding.is_fine for finding in findings)
        print(json.dumps({"is_fine": is_fine, "findings": [finding.as_dict() for finding in findings]}))
    else:
        for finding in findings:
            print(finding)
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command. An error is printed as a sentence and sets the exit code."""
    try:
        cli()
    except SettingsError as err:
        print(err, file=sys.stderr)
        sys.exit(2)
    except (CommandFailed, AppError) as err:
        print(err, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
