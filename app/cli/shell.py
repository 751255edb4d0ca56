"""psql and redis-cli on the servers of a running `calbridge up`, or on DATABASE_URL and REDIS_URL.

Run it as `python -m app.cli.shell psql ...`; `make psql` and `make redis-cli` do.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from app.cli.devserver.embedded import postgres_binaries, redis_binary
from app.cli.errors import CommandFailed
from app.core.database_url import parse_database_url
from app.environment import DEFAULT_DATA_DIR, running_up
from app.settings import Settings, SettingsError, load_settings

# A program with its arguments, and variables to add to its environment. Passwords are passed in a variable, since every
# user of the machine can read the arguments of a process.
Command = tuple[list[str], dict[str, str]]


def psql_command(database_url: str, program: str) -> Command:
    """Return the command that starts psql on a DATABASE_URL."""
    url = parse_database_url(database_url)
    found = re.fullmatch(r"postgresql://(?:([^:/@]*)(?::([^@]*))?@)?(.*)", url.dsn)
    assert found is not None  # the form that parse_database_url writes
    user, password, rest = found.groups()
    address, _, query = rest.partition("?")
    login = f"{user}@" if user is not None else ""
    values = dict(parse_qsl(query))
    password = unquote(password) if password else values.pop("password", None)
    values.pop("sslpassword", None)  # there is no variable for it: psql asks for it
    if url.has_system_roots:
        values |= {"sslmode": "verify-full", "sslrootcert": "system"}
    if url.certificate is not None:
        file, key, _ = url.certificate
        values |= {"sslcert": file} if key is None else {"sslcert": file, "sslkey": key}
    dsn = f"postgresql://{login}{address}{'?' if values else ''}{urlencode(values, quote_via=quote)}"
    return [program, dsn], {} if password is None else {"PGPASSWORD": password}


def redis_cli_command(redis_url: str, program: str) -> Command:
    """Return the command that starts redis-cli on a REDIS_URL."""
    url = urlsplit(redis_url)
    query = dict(parse_qsl(url.query))
    if url.scheme == "unix":
        arguments, database = ["-s", unquote(url.path)], query.get("db")
    else:
        arguments = ["-h", url.hostname or "localhost", "-p", str(url.port or 6379)]
        database = url.path.strip("/") or query.get("db")
    if url.scheme == "rediss":
        arguments.append("--tls")
    if database:
        arguments += ["-n", database]
    user = unquote(url.username) if url.username else query.get("username")
    if user:
        arguments += ["--user", user]
    password = unquote(url.password) if url.password else query.get("password")
    return [program, *arguments], {} if password is None else {"REDISCLI_AUTH": password}


def _find_command(name: str, settings: Settings) -> Command:
    """Return the command of psql or redis-cli. Raises CommandFailed if there is no server or no program."""
    running = running_up(DEFAULT_DATA_DIR)
    is_psql = name == "psql"
    if is_psql:
        given = settings.required_database_url() if settings.database_url else None
    else:
        given = settings.required_redis_url() if settings.redis_url else None
    url = given
    if given is None and running is not None:
        url = running.database_url if is_psql else running.redis_url
    if url is None:
        raise CommandFailed(
            f"No `calbridge up` runs on {DEFAULT_DATA_DIR}. Start `make run` or `make dev` in another terminal, or set "
            f"{'DATABASE_URL' if is_psql else 'REDIS_URL'}."
        )
    program = _program(name, is_embedded=given is None)
    return psql_command(url, program) if is_psql else redis_cli_command(url, program)


def _program(name: str, *, is_embedded: bool) -> str:
    """Return the program's path. Raises CommandFailed if it is not installed.

    For an embedded server, the program beside it comes first. Otherwise it is the one on PATH, which can use TLS.
    """
    candidates = [shutil.which(name)]
    with suppress(CommandFailed):
        folder = postgres_binaries() if name == "psql" else redis_binary().parent
        candidates.append(str(folder / name) if (folder / name).exists() else None)
    found = [path for path in candidates if path is not None]
    if not found:
        package = "postgresql-client" if name == "psql" else "redis-tools"
        raise CommandFailed(f"{name} is not installed here. Install it (Debian: apt install {package}).")
    return found[-1] if is_embedded else found[0]


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Replace this process by psql or redis-cli, which the first argument names. The others are passed on."""
    name, *others = arguments
    try:
        command, variables = _find_command(name, load_settings())
    except (CommandFailed, SettingsError) as err:
        sys.exit(str(err))
    os.execve(command[0], [*command, *others], {**environment, **variables})  # noqa: S606 - no shell


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
