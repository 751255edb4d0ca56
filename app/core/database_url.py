"""DATABASE_URL, parsed as PostgreSQL's own clients parse it and prepared for asyncpg.

Opens no connection.

Parameters: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

_URL = re.compile(
    r"postgres(?:ql)?(?:\+[a-z0-9_]+)?://"
    r"(?:(?P<user>[^:/@]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<hosts>[^/?@]*)(?:/(?P<database>[^?@]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s,]*)(?::(?P<port>\d{1,5}))?")

_SHAPE = (
    "must look like postgresql://user:password@host/database (with @ : / ? # % in a password percent-encoded)"
)
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer"),
    "ssl_min_protocol_version": ("TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1.2", "TLSv1.3"),
}
_SYNONYMS = {"ssl": "sslmode", "database": "dbname"}
_SSL_MODES = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
_OTHERS = ("host", "port", "user", "password", "dbname", "sslpassword", "krbsrvname", "gsslib", "options")
# Parameters that asyncpg does not know and that the connection can do without: it uses keep-alives and sends the
# server's name anyway. asyncpg has no channel binding: use sslmode=verify-full against machines in the middle.
_DROPPED = (
    "channel_binding",
    "gssencmode",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslcompression",
    "sslsni",
    "fallback_application_name",
    "uselibpqcompat",
)
_PASSED_ON = frozenset(_CHOICES) | frozenset(_FILES) | frozenset(_OTHERS)
_OURS = ("application_name", "connect_timeout")

_CONNECT_TIMEOUT_SECONDS = 10
_MAX_CONNECT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A checked DATABASE_URL. `dsn` is for asyncpg.

    `has_system_roots`: an authority that the system trusts must have signed the server's certificate.
    `certificate`: the client's certificate file, its key file and the key's password.
    """

    dsn: str = field(repr=False)
    application_name: str | None
    connect_within_seconds: int
    has_system_roots: bool
    certificate: tuple[str, str | None, str | None] | None = field(repr=False)


def parse_database_url(value: str) -> DatabaseUrl:
    """Parse and check the URL.

    Raises ValueError with a sentence that begins with a verb and names the parameter. It never quotes a value.
    """
    found = _URL.fullmatch(value.strip())
    if found is None or not _are_hosts(found["hosts"]):
        raise ValueError(_SHAPE)
    query = _query(found["query"] or "")
    if not (found["database"] or query.get("dbname")):
        raise ValueError(_SHAPE)
    _check_ports(query)
    application_name = query.pop("application_name", None)
    connect_within = _connect_timeout(query)
    has_system_roots = query.get("sslrootcert") == "system"
    certificate = None
    if has_system_roots:
        if query.pop("sslmode", "verify-full") != "verify-full":
            raise ValueError("has sslrootcert=system, which needs sslmode=verify-full")
        if "sslcrl" in query:
            raise ValueError(
                "has sslrootcert=system, with which sslcrl cannot be checked: give sslrootcert a file"
            )
        del query["sslrootcert"]
    _check_files(query)
    if has_system_roots and "sslcert" in query:
        certificate = (query.pop("sslcert"), query.pop("sslkey", None), query.pop("sslpassword", None))
    user, password, database = (found[name] for name in ("user", "password", "database"))
    login = _encoded(user) + ("" if password is None else ":" + _encoded(password))
    dsn = f"postgresql://{login}{'@' if login else ''}{found['hosts']}/{_encoded(database)}"
    if query:
        dsn += "?" + urlencode(query, quote_via=quote)
    return DatabaseUrl(dsn, application_name, connect_within, has_system_roots, certificate)


def _encoded(part: str | None) -> str:
    """Percent-encode a part once, whether it was encoded before or not."""
    return quote(unquote(part or ""), safe="")


def _query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for given, value in parse_qsl(text):
        name = _SYNONYMS.get(given, given)
        if name == "sslmode":
            mode = _SSL_MODES.get(value, value) if given == "ssl" else value
            # If it is given twice, the stricter one counts: a connection is as safe as any part of its URL demands.
            query[name] = max(query.get(name, mode), mode, key=_strictness)
        else:
            query[name] = value
    for name, value in query.items():
        if name not in _PASSED_ON and name not in _DROPPED and name not in _OURS:
            # A text with an @ is more likely the rest of a password that was not encoded, so it is not quoted.
            is_name = "@" not in text and re.fullmatch(r"[A-Za-z_]{1,40}", name)
            shown = f"the parameter {name}" if is_name else "a parameter"
            raise ValueError(
                f"has {shown}, which is not known here. Known are sslmode, sslrootcert, sslcert, sslkey, "
                "application_name, connect_timeout, options, target_session_attrs and others of libpq; settings of "
                "the server go into options, as in options=-c%20search_path%3Dcalbridge"
            )
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"has a wrong {name}: choose from {', '.join(_CHOICES[name])}")
    return {name: value for name, value in query.items() if name not in _DROPPED}


def _strictness(mode: str) -> int:
    """Return the mode's rank. An unknown mode ranks highest, so that it is refused."""
    modes = _CHOICES["sslmode"]
    return modes.index(mode) if mode in modes else len(modes)


def _connect_timeout(query: dict[str, str]) -> int:
    text = query.pop("connect_timeout", "0")
    if not re.fullmatch(r"\d{1,9}", text) or int(text) > _MAX_CONNECT_SECONDS:
        raise ValueError(f"has a wrong connect_timeout: use seconds, from 1 to {_MAX_CONNECT_SECONDS}")
    return int(text) or _CONNECT_TIMEOUT_SECONDS


def _are_hosts(text: str) -> bool:
    for host in text.split(","):
        found = _HOST.fullmatch(host)
        if found is None or (found["port"] is not None and not 0 < int(found["port"]) < 65_536):
            return False
    return True


def _check_ports(query: dict[str, str]) -> None:
    for port in query.get("port", "5432").split(","):
        if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65_536:
            raise ValueError("has a wrong port: use a number from 1 to 65535")


def _check_files(query: dict[str, str]) -> None:
    for name in _FILES:
        if name not in query:
            continue
        try:
            Path(query[name]).open("rb").close()
        except (OSError, ValueError):
            raise ValueError(f"has {name} with a file that does not exist or cannot be read here") from None
    if query.get("sslmode") in {"verify-ca", "verify-full"} and "sslrootcert" not in query:
        default = Path("~/.postgresql/root.crt").expanduser()
        if not default.is_file():
            raise ValueError(
                f"has sslmode={query['sslmode']}, but not the certificate of the authority: add sslrootcert=FILE, or "
                "sslrootcert=system for an authority that this system trusts"
            )
