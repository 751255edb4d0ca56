"""`make psql` and `make redis-cli`: the servers that they open, and where passwords are not."""

import os
import sys
from urllib.parse import parse_qsl, urlsplit

import pytest

from app.cli.shell import main, psql_command, redis_cli_command


@pytest.mark.parametrize(
    ("url", "dsn", "variables"),
    [
        (
            "postgresql://calbridge@/calbridge?host=/run/x",
            "postgresql://calbridge@/calbridge?host=%2Frun%2Fx",
            {},
        ),
        ("postgresql+asyncpg://u:p%40ss@db:5433/x", "postgresql://u@db:5433/x", {"PGPASSWORD": "p@ss"}),
        ("postgres://u@db/x?password=p&ssl=true", "postgresql://u@db/x?sslmode=require", {"PGPASSWORD": "p"}),
        (
            "postgresql://u@[::1]/x?sslrootcert=system",
            "postgresql://u@[::1]/x?sslmode=verify-full&sslrootcert=system",
            {},
        ),
        ("postgresql://db/x", "postgresql://db/x", {}),
        ("postgresql://db:5433/x", "postgresql://db:5433/x", {}),
        ("postgresql://[::1]:5433/x", "postgresql://[::1]:5433/x", {}),
    ],
)
def test_psql_gets_the_address_and_the_password_by_a_variable(url, dsn, variables):
    assert psql_command(url, "psql") == (["psql", dsn], variables)


@pytest.mark.parametrize("roots", ["", "&sslrootcert=system"])
def test_psql_has_the_clients_certificate_and_not_the_password_of_its_key(tmp_path, roots):
    file = tmp_path / "client.pem"
    file.touch()
    url = f"postgresql://u@db/x?sslmode=verify-full&sslcert={file}&sslkey={file}&sslpassword=hunter2{roots}"
    if not roots:
        url = url.replace("verify-full", "require")
    (_, dsn), variables = psql_command(url, "psql")
    found = dict(parse_qsl(urlsplit(dsn).query))
    assert (found["sslcert"], found["sslkey"]) == (str(file), str(file))
    assert "hunter2" not in dsn
    assert variables == {}


@pytest.mark.parametrize(
    ("url", "arguments", "variables"),
    [
        ("unix:///run/redis.sock?db=2", "-s /run/redis.sock -n 2", {}),
        ("redis://localhost", "-h localhost -p 6379", {}),
        ("redis://:s%2Fx@cache:6380/1", "-h cache -p 6380 -n 1", {"REDISCLI_AUTH": "s/x"}),
        ("rediss://ada:x@cache/0", "-h cache -p 6379 --tls -n 0 --user ada", {"REDISCLI_AUTH": "x"}),
        (
            "redis://cache?username=ada&password=x",
            "-h cache -p 6379 --user ada",
            {"REDISCLI_AUTH": "x"},
        ),
    ],
)
def test_redis_cli_gets_the_address_and_the_password_by_a_variable(url, arguments, variables):
    assert redis_cli_command(url, "redis-cli") == (["redis-cli", *arguments.split()], variables)


@pytest.mark.parametrize("name", ["psql", "redis-cli"])
def test_where_nothing_runs_it_says_what_to_do(clean_environment, name):
    with pytest.raises(SystemExit) as ended:
        main([name], os.environ)
    variable = "DATABASE_URL" if name == "psql" else "REDIS_URL"
    assert ended.value.code == (
        f"No `calbridge up` runs on .data. Start `make run` or `make dev` in another terminal, or set {variable}."
    )


def test_further_arguments_are_passed_on(clean_environment, tmp_path):
    program = tmp_path / "psql"
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    started = []
    clean_environment.setenv("PATH", str(tmp_path))
    clean_environment.setenv("DATABASE_URL", "postgresql://u:p@db/x")
    clean_environment.setattr(os, "execve", lambda *command: started.append(command))
    main(["psql", "-c", "SELECT 1"], {"HOME": "/"})
    arguments = [str(program), "postgresql://u@db/x", "-c", "SELECT 1"]
    assert started == [(str(program), arguments, {"HOME": "/", "PGPASSWORD": "p"})]
