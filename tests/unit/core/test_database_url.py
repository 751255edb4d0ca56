"""DATABASE_URL as hosts of PostgreSQL hand it out."""

from urllib.parse import parse_qs, urlsplit

import pytest

from app.core.database_url import parse_database_url
from app.settings import SettingsError, load_settings


@pytest.fixture(autouse=True)
def _clean(clean_environment, tmp_path):
    clean_environment.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("value", "dsn"),
    [
        ("postgresql://u:p@host/db", "postgresql://u:p@host/db"),
        ("postgres://u:p@host:6543/db", "postgresql://u:p@host:6543/db"),
        ("postgresql+psycopg2://u:p@host/db", "postgresql://u:p@host/db"),
        ("postgresql://u@/db?host=/run/x", "postgresql://u@/db?host=%2Frun%2Fx"),
        ("postgresql://u:p@a:1,b,[::1]:3/db", "postgresql://u:p@a:1,b,[::1]:3/db"),
        # Characters of a URL in a password, encoded or not.
        ("postgresql://u:a#b?c/d:e@host/db", "postgresql://u:a%23b%3Fc%2Fd%3Ae@host/db"),
        ("postgresql://u:a%40b%2B@host/db", "postgresql://u:a%40b%2B@host/db"),
        # Neon, Heroku, Azure, Prisma's example of a node client.
        (
            "postgresql://u:p@h/db?sslmode=require&channel_binding=require",
            "postgresql://u:p@h/db?sslmode=require",
        ),
        ("postgres://u:p@h/db?ssl=true", "postgresql://u:p@h/db?sslmode=require"),
        ("postgres://u:p@h/db?ssl=prefer", "postgresql://u:p@h/db?sslmode=prefer"),
        ("postgresql://u:p@h/db?keepalives=1&keepalives_idle=30", "postgresql://u:p@h/db"),
        ("postgresql://u:p@h/?dbname=db&sslmode=", "postgresql://u:p@h/?dbname=db"),
        # Given twice, in any order: the stricter one.
        ("postgresql://u:p@h/db?sslmode=require&sslmode=disable", "postgresql://u:p@h/db?sslmode=require"),
        ("postgresql://u:p@h/db?sslmode=require&ssl=false", "postgresql://u:p@h/db?sslmode=require"),
        ("postgresql://u:p@h/db?ssl=true&sslmode=prefer", "postgresql://u:p@h/db?sslmode=require"),
        ("postgresql://u:p@h/db?sslmode=require&sslmode=", "postgresql://u:p@h/db?sslmode=require"),
    ],
)
def test_it_is_made_ready_for_asyncpg(value, dsn):
    assert parse_database_url(value).dsn == dsn


def test_parameters_that_are_ours_to_apply():
    url = parse_database_url(
        "postgresql://u@h/db?application_name=mine&connect_timeout=3&options=-c%20search_path%3Dx"
    )
    assert (url.application_name, url.connect_within_seconds) == ("mine", 3)
    assert parse_qs(urlsplit(url.dsn).query) == {"options": ["-c search_path=x"]}
    assert parse_database_url("postgresql://u@h/db?connect_timeout=0").connect_within_seconds == 10


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("postgresql://hunter2", "must look like"),
        ("postgresql://u:hunter2@host", "must look like"),
        ("postgresql://u:hunter2@host:port/db", "must look like"),
        ("postgresql://u:hunter2@host:70000/db", "must look like"),
        ("postgresql://u:hun@ter2@host/db", "percent-encoded"),
        ("sqlite:///hunter2", "must look like"),
        ("postgresql://u@h/db?sslmode=hunter2", "sslmode: choose from disable, allow, prefer, require"),
        ("postgresql://u@h/db?target_session_attrs=hunter2", "choose from any, read-write"),
        ("postgresql://u@h/db?gssencmode=require", "gssencmode"),
        ("postgresql://u@h/db?connect_timeout=hunter2", "connect_timeout: use seconds"),
        ("postgresql://u@h/db?port=hunter2", "port"),
        ("postgresql://u@h/db?search_path=hunter2", "the parameter search_path, which is not known"),
        ("postgresql://u@h/db?hunter2=1", "a parameter, which is not known"),
        ("postgresql://u@h/db?sslrootcert=/hunter2", "sslrootcert with a file that does not exist"),
        ("postgresql://u@h/db?sslcert=/hunter2", "sslcert with a file that does not exist"),
        ("postgresql://u@h/db?sslmode=verify-full", "add sslrootcert=FILE"),
        ("postgresql://u@h/db?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        ("postgresql://u@h/db?sslmode=verify-full&ssl=true", "add sslrootcert=FILE"),
        (
            "postgresql://u@h/db?ssl=hunter2&sslmode=require",
            "sslmode: choose from disable, allow, prefer, require",
        ),
        (
            "postgresql://u@h/db?sslrootcert=system&sslcert=/hunter2",
            "sslcert with a file that does not exist",
        ),
        ("postgresql://u@h/db?sslrootcert=system&sslcrl=/etc/hosts", "sslcrl cannot be checked"),
        # Passwords with an @ that is not encoded: what follows it is no host, no database and no parameter.
        ("postgresql://u:p@hunter2/x@host/db", "percent-encoded"),
        ("postgresql://u:p@w/d?hunter=two@host/db", "has a parameter, which is not known"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_without_the_value(monkeypatch, value, says):
    monkeypatch.setenv("DATABASE_URL", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith("DATABASE_URL: ")
    assert says in str(caught.value)
    assert "hunter" not in str(caught.value)
    assert "\n" not in str(caught.value)
