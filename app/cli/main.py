"""The console command `calbridge` (contract 1).

Exit codes: 0 done, 1 it cannot be done (a sentence on stderr says why), 2 wrong settings or arguments.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from app.cli.errors import CommandFailed, database_failures
from app.core.db import Session, create_engine, create_sessions, transaction
from app.core.errors import AppError
from app.settings import Settings, SettingsError, load_settings

DEFAULT_DATA_DIR = Path(".data")

cli = typer.Typer(
    name="calbridge",
    help="Calendar sync and change webhooks over one HTTP API. Settings are environment variables, or in ./.env.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
project_cli = typer.Typer(help="Projects: each has its own calendars and keys.", no_args_is_help=True)
key_cli = typer.Typer(help="API keys of a project.", no_args_is_help=True)
cli.add_typer(project_cli, name="project")
cli.add_typer(key_cli, name="api-key")

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)]


@cli.command()
def up(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: Annotated[
        Path, typer.Option(help="Folder of the embedded servers' data and the made keys.")
    ] = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready.")] = False,
) -> None:
    """Start everything here: PostgreSQL and Redis (unless configured), migrations, API and worker."""
    from app.cli.up import run_up

    run_up(host=host, port=port, data_dir=data_dir, as_json=as_json)


@cli.command()
def migrate() -> None:
    """Bring the database's schema to the newest revision."""
    from app.core.migrations import upgrade_to_head

    url = _settings("database_url").required_database_url()
    with database_failures():
        upgrade_to_head(url)
    print("The schema is at the newest revision.", file=sys.stderr)


@cli.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(help="Processes.", min=1, max=256)] = 1,
) -> None:
    """Serve the HTTP API alone."""
    import uvicorn

    from app.cli.shared_metrics import shared_metrics
    from app.cli.up import check_port
    from app.core.logging import configure_logging

    settings = _settings("database_url", "redis_url", "fernet_keys")
    check_port(host, port)
    configure_logging(level=settings.log_level, json=settings.environment == "production")
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
    """Run one worker, scheduler included. Any number may run."""
    settings = _settings("database_url", "redis_url", "fernet_keys")
    if metrics_port is not None:
        from app.cli.up import check_port

        check_port(metrics_host, metrics_port, names=("--metrics-host", "--metrics-port"))

    # libuv resolves names in this many threads: a few hanging names must not block all others.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "64")
    import uvloop

    from app.core.logging import configure_logging
    from workers.main import run_worker
    from workers.status import serving_status

    configure_logging(level=settings.log_level, json=settings.environment == "production")

    async def run_until_signal() -> None:
        this = asyncio.current_task()
        assert this is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            # The first lets what is under way end; a second one cuts it.
            asyncio.get_running_loop().add_signal_handler(number, this.cancel)
        await run_worker(settings)

    with ExitStack() as stack:
        if metrics_port is not None:
            stack.enter_context(serving_status(metrics_host, metrics_port))
        stack.enter_context(suppress(asyncio.CancelledError))
        stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop)).run(run_until_signal())


@project_cli.command("create")
def project_create(name: Annotated[str, typer.Argument(help="A name for people.")]) -> None:
    """Make a project and its first API key. The key is shown this once."""
    from app.projects import service

    async def create(session: Session) -> dict[str, str]:
        project_id, api_key = await service.create_project(session, name)
        return {"project_id": project_id, "api_key": api_key}

    print(json.dumps(_in_transaction(create)))


@key_cli.command("create")
def api_key_create(
    project_id: Annotated[str, typer.Argument(help="proj_...")],
    name: Annotated[str, typer.Option(help="A name for people.")] = "key",
) -> None:
    """Make another API key for a project. The key is shown this once."""
    from app.projects import service

    async def create(session: Session) -> dict[str, str]:
        key_id, api_key = await service.create_api_key(session, project_id, name)
        return {"key_id": key_id, "project_id": project_id, "api_key": api_key}

    print(json.dumps(_in_transaction(create)))


@key_cli.command("disable")
def api_key_disable(key_id: Annotated[str, typer.Argument(help="key_...")]) -> None:
    """Make an API key stop working at once."""
    from app.projects import service

    async def disable(session: Session) -> dict[str, str]:
        await service.disable_api_key(session, key_id)
        return {"key_id": key_id, "state": "disabled"}

    print(json.dumps(_in_transaction(disable)))


@cli.command()
def rotate_keys() -> None:
    """Encrypt every stored secret anew with the first of CREDENTIALS_ENCRYPTION_KEYS; docs/operations.md has the steps.

    It may be interrupted and run again, and everything else goes on running meanwhile.
    """
    from app.cli.keys import rotate_all

    settings = _settings("database_url", "fernet_keys")
    with database_failures():
        asyncio.run(rotate_all(settings))


@cli.command()
def doctor() -> None:
    """Check settings, database, Redis, keys, Messages, mail and the providers; say how to mend what is wrong."""
    from app.cli.doctor import examine

    _use_running_servers()
    findings = asyncio.run(examine())
    for finding in findings:
        print(finding)
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(1)


def _settings(*needed: str) -> Settings:
    """The settings, with the servers of a running `up` where none are configured.

    `needed`: database_url, redis_url, fernet_keys. Raises SettingsError with a line for each that is not set.
    """
    _use_running_servers()
    settings = load_settings()
    missing = []
    for name in needed:
        try:
            getattr(settings, f"required_{name}")()
        except SettingsError as err:
            missing.append(str(err))
    if missing:
        raise SettingsError("\n".join(missing))
    return settings


def _use_running_servers() -> None:
    """Lets a command beside a running `calbridge up` work on the same servers without any settings."""
    from app.cli.up import running_up

    try:
        settings = load_settings()
    except SettingsError:
        return  # the caller loads them again, and says so
    if settings.database_url is not None or settings.redis_url is not None:
        return
    found = running_up(DEFAULT_DATA_DIR)
    if found is not None:
        print(f"(using the `calbridge up` that runs on {DEFAULT_DATA_DIR})", file=sys.stderr)
        os.environ["DATABASE_URL"] = found.database_url
        os.environ["REDIS_URL"] = found.redis_url
        if not settings.fernet_keys:
            os.environ["CREDENTIALS_ENCRYPTION_KEYS"] = found.credentials_encryption_keys


def _in_transaction(work: Callable[[Session], Awaitable[dict[str, str]]]) -> dict[str, str]:
    url = _settings("database_url").required_database_url()

    async def run() -> dict[str, str]:
        engine = create_engine(url, pool_size=1)
        try:
            async with transaction(create_sessions(engine)) as session:
                return await work(session)
        finally:
            await engine.dispose()

    with database_failures():
        return asyncio.run(run())


def main() -> None:
    """The entry point: errors become a sentence and an exit code."""
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
