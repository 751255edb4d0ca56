"""A PostgreSQL that demands TLS, as every managed one does, through the URLs that their consoles show."""

import asyncio
import getpass
import json
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from sqlalchemy import text

from app.cli.devserver.embedded import start_postgres
from app.cli.doctor.examine import examine
from app.core.db import create_engine
from migrations.revisions import upgrade_to_head
from tests.fakes.tls_front import serving_tls

_PASSWORD = "p#ss/w:rd"


@dataclass
class SecureServer:
    """A PostgreSQL that takes clients with TLS and a password only."""

    port: int
    root: Path
    other_root: Path

    def url(self, host: str = "localhost", **parameters: str) -> str:
        query = "&".join(f"{name}={quote(value)}" for name, value in parameters.items())
        login = f"calbridge:{quote(_PASSWORD, safe='')}"
        return f"postgresql://{login}@{host}:{self.port}/calbridge?{query}"


def _binaries_with_tls() -> Path | None:
    """Of a PostgreSQL that is installed here: the embedded one is built without TLS."""
    for found in (*sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")), shutil.which("postgres")):
        if found is not None:
            folder = Path(found).resolve().parent
            libraries = subprocess.run(
                [folder / "pg_config", "--configure"], capture_output=True, text=True, check=False
            )
            if "openssl" in libraries.stdout:
                return folder
    return None


@pytest.fixture(scope="module", params=["behind a proxy", "its own TLS"])
def secure(request: pytest.FixtureRequest, servers_dir: Path) -> Iterator[SecureServer]:
    folder = servers_dir / request.param.replace(" ", "_")
    folder.mkdir(mode=0o711)
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    root, other_root = folder / "root.pem", folder / "other.pem"
    authority.cert_pem.write_to_path(str(root))
    trustme.CA().cert_pem.write_to_path(str(other_root))
    if request.param == "behind a proxy":
        started = _behind_a_proxy(folder, certificate)
    else:
        binaries = _binaries_with_tls()
        if binaries is None:
            pytest.skip("no PostgreSQL with TLS is installed here")
        started = _with_its_own_tls(folder, binaries, certificate)
    with started as port:
        yield SecureServer(port, root, other_root)


@contextmanager
def _behind_a_proxy(folder: Path, certificate: trustme.LeafCert) -> Iterator[int]:
    first = start_postgres(folder, durable=False)
    asyncio.run(_execute(first.url, f"ALTER USER calbridge PASSWORD '{_PASSWORD}'"))
    first.stop()
    (folder / "postgres" / "pg_hba.conf").write_text("local all all scram-sha-256\n")
    server = start_postgres(folder, durable=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    try:
        with serving_tls(f"{server.url.partition('?host=')[2]}/.s.PGSQL.5432", context) as port:
            yield port
    finally:
        server.stop()


@contextmanager
def _with_its_own_tls(folder: Path, binaries: Path, certificate: trustme.LeafCert) -> Iterator[int]:
    owner = pwd.getpwnam("postgres" if os.geteuid() == 0 else getpass.getuser())
    cluster = folder / "cluster"
    cluster.mkdir(mode=0o700)
    os.chown(cluster, owner.pw_uid, owner.pw_gid)
    (cluster.parent / "password").write_text(_PASSWORD)
    as_owner: dict[str, Any] = {"cwd": "/", "env": {"LC_ALL": "C"}}
    if os.geteuid() == 0:
        as_owner |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    subprocess.run(
        [binaries / "initdb", "-D", cluster, "-U", "calbridge", "--pwfile", folder / "password", "--no-sync"],
        check=True,
        capture_output=True,
        **as_owner,
    )
    certificate.cert_chain_pems[0].write_to_path(str(cluster / "server.crt"))
    certificate.private_key_pem.write_to_path(str(cluster / "server.key"))
    for name in ("server.crt", "server.key"):
        (cluster / name).chmod(0o600)
        os.chown(cluster / name, owner.pw_uid, owner.pw_gid)
    (cluster / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "port": port,
        "ssl": "on",
        "fsync": "off",
        "unix_socket_directories": "",
        "listen_addresses": "127.0.0.1",
    }
    command = [str(binaries / "postgres"), "-D", str(cluster)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **as_owner)
    try:
        _wait_until_ready(cluster / "postmaster.pid", process)
        server = f"postgresql://calbridge:{quote(_PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        asyncio.run(_create_database(server))
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _wait_until_ready(pid_file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and "ready" in pid_file.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def _create_database(url: str) -> None:
    engine = create_engine(url, pool_size=1).execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text("CREATE DATABASE calbridge"))
    await engine.dispose()


async def _execute(url: str, statement: str) -> object:
    engine = create_engine(url, pool_size=1)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


@pytest.fixture(autouse=True)
def _clean(clean_environment, tmp_path):
    clean_environment.setenv("HOME", str(tmp_path))


# It fails without TLS.
_QUERY = "SELECT 1"


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"sslmode": "allow"},
        {"sslmode": "prefer"},
        {"sslmode": "require"},
        {"sslmode": "require", "channel_binding": "require"},
        {"ssl": "true"},
        {"sslmode": "verify-ca", "sslrootcert": "ROOT"},
        {"sslmode": "verify-full", "sslrootcert": "ROOT"},
        {"sslmode": "require", "connect_timeout": "10", "target_session_attrs": "read-write"},
    ],
)
async def test_each_mode_that_may_use_tls_does(secure, parameters):
    given = {name: str(secure.root) if value == "ROOT" else value for name, value in parameters.items()}
    assert await _execute(secure.url(**given), _QUERY) == 1


async def test_a_system_authority_is_one_that_the_system_trusts(secure, monkeypatch):
    url = secure.url(sslmode="verify-full", sslrootcert="system")
    with pytest.raises(ConnectionError, match="certificate"):
        await _execute(url, _QUERY)
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.root))
    assert await _execute(url, _QUERY) == 1
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1"):
        await _execute(secure.url("127.0.0.1", sslrootcert="system"), _QUERY)


async def test_settings_of_the_session_come_with_the_url(secure):
    url = secure.url(sslmode="require", application_name="mine", options="-c search_path=elsewhere")
    statement = "SELECT current_setting('application_name') || current_setting('search_path')"
    assert await _execute(url, statement) == "mineelsewhere"
    assert await _execute(secure.url(), "SELECT current_setting('application_name')") == "calbridge"
    # Our own limits are kept.
    assert await _execute(url, "SELECT current_setting('statement_timeout')") == "30s"


async def test_the_second_host_is_tried_when_the_first_is_unavailable(secure):
    url = secure.url(sslmode="require").replace("@localhost:", "@localhost:1,localhost:")
    assert await _execute(url, _QUERY) == 1


async def _database_line() -> str:
    return next(str(finding) for finding in await examine() if finding.subject == "database")


@pytest.mark.parametrize(
    ("host", "parameters", "says"),
    [
        ("localhost", {"sslmode": "verify-full", "sslrootcert": "OTHER"}, "certificate is not believed: "),
        ("localhost", {"sslmode": "verify-ca", "sslrootcert": "OTHER"}, "certificate is not believed: "),
        (
            "127.0.0.1",
            {"sslmode": "verify-full", "sslrootcert": "ROOT"},
            "its host is the one in the certificate",
        ),
        ("localhost", {"sslmode": "disable"}, "no encryption"),
    ],
)
async def test_what_does_not_fit_is_a_sentence_in_doctor_and_in_migrate(
    secure, monkeypatch, host, parameters, says
):
    files = {"ROOT": str(secure.root), "OTHER": str(secure.other_root)}
    url = secure.url(host, **{name: files.get(value, value) for name, value in parameters.items()})
    monkeypatch.setenv("DATABASE_URL", url)
    line = await _database_line()
    assert line.startswith("WRONG database: ")
    assert says in line
    assert "p#ss" not in line
    done = await asyncio.to_thread(_calbridge, "migrate")
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_a_host_name_is_checked_by_verify_full_alone(secure):
    url = secure.url("127.0.0.1", sslmode="verify-ca", sslrootcert=str(secure.root))
    assert await _execute(url, _QUERY) == 1


def _calbridge(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_migrations_and_commands_take_the_same_url(secure, monkeypatch):
    url = secure.url(sslmode="verify-full", sslrootcert=str(secure.root), application_name="100%")
    monkeypatch.setenv("DATABASE_URL", url)
    done = await asyncio.to_thread(_calbridge, "migrate")
    assert done.returncode == 0, done.stderr
    await asyncio.to_thread(upgrade_to_head, url)
    made = await asyncio.to_thread(_calbridge, "project", "create", "x")
    assert json.loads(made.stdout)["project_id"].startswith("proj_")
    assert (await _database_line()).startswith("ok    database: PostgreSQL ")


async def test_a_pooler_that_refuses_our_session_settings_is_named(monkeypatch):
    """What PgBouncer says to a startup parameter that is not in its ignore_startup_parameters."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
        fields = b"SFATAL\0C08P01\0Munsupported startup parameter: statement_timeout\0\0"
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as pooler:
        port = pooler.sockets[0].getsockname()[1]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://u@127.0.0.1:{port}/db?sslmode=disable")
        line = await _database_line()
    assert line.startswith(
        "WRONG database: A connection pooler stands before PostgreSQL and refuses statement_timeout"
    )
