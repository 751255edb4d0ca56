"""`calbridge rotate-keys`: every secret ends up under the first key, whatever happens meanwhile."""

import ast
import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from sqlalchemy import LargeBinary, func, insert, select, text, update

import app as app_package
from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.ids import new_id
from app.credentials.sealed import access_token_context, client_secret_context, context_of
from app.keys import repository, service
from app.models import (
    Base,
    Calendar,
    Credentials,
    OAuthApp,
    OAuthClientSecret,
    OAuthSession,
    PushChannel,
    StoredResponse,
    WebhookSubscription,
)
from app.oauth.apps import app_context
from app.oauth.sessions import session_context
from app.push.service import sealed_context
from app.webhooks.endpoint_secrets import secrets_context
from tests.conftest import FERNET_KEY

OLD, NEW = FERNET_KEY, Fernet.generate_key().decode()
CONTEXTS = {
    "credentials.sealed": context_of("x"),
    "credentials.access_token_sealed": access_token_context("x"),
    "idempotent_answers.body": "idempotent_answers:x:x",
    "oauth_apps.sealed": app_context("x"),
    "oauth_sessions.sealed": session_context("x"),
    "oauth_client_secrets.sealed": client_secret_context("x"),
    "push_channels.sealed": sealed_context("x"),
    "webhook_subscriptions.secrets_sealed": secrets_context("x"),
}
# Bytes that are no secrets.
PLAIN = {
    "calendar_events.content_hash",
    "inbound_replies.message_id_sha256",
    "invitation_mails.mail",
    "webhook_deliveries.body",
}


def test_every_column_of_bytes_is_sealed_or_known_to_be_no_secret():
    plain = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary)
    }
    assert plain == PLAIN, "a new secret is declared as `Sealed`"


def test_columns_are_opened_with_what_they_were_sealed_with():
    found = {
        str(column): column.value_of(["x"] * len(column.key) + [b""]).context
        for column in repository.sealed_columns()
    }
    assert found == CONTEXTS


def test_everything_that_is_sealed_in_the_code_goes_into_a_known_module():
    """A new use of `SecretBox.seal` is a new kind of secret, or belongs to one of these."""
    folder = Path(app_package.__file__).parent
    sealing = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "seal"
    }
    assert sealing == {
        "api/idempotency.py",
        "credentials/service.py",
        "credentials/store.py",
        "oauth/apps.py",
        "oauth/sessions.py",
        "push/service.py",
        "webhooks/endpoint_secrets.py",
    }


async def make_one_of_each(sessions, project_id, box):
    async with transaction(sessions) as session:
        add = session.execute
        values = {"project_id": project_id, "platform": "google"}
        await add(
            insert(Credentials).values(
                **values, id="cred_1", sealed=box.seal(context_of("cred_1"), {"refresh_token": "hunter2"}),
                access_token_sealed=box.seal(access_token_context("cred_1"), "hunter2"),
            )
        )  # fmt: skip
        await add(
            insert(Credentials).values(**values, id="cred_2", sealed=box.seal(context_of("cred_2"), {}))
        )
        app_values = {"id": "app_1", "client_id": "x", "redirect_uris": []}
        await add(
            insert(OAuthApp).values(
                **values, **app_values, sealed=box.seal(app_context("app_1"), {"client_secret": "hunter2"})
            )
        )
        secret = box.seal(client_secret_context("osec_1"), {"client_secret": "hunter2"})
        await add(insert(OAuthClientSecret).values(**values, id="osec_1", client_id="x", sealed=secret))
        await add(
            insert(OAuthSession).values(
                **values, state_sha256="s", app_id="app_1", redirect_uri="", consent_asked=True, expires_at=func.now(),
                sealed=box.seal(session_context("s"), {"code_verifier": "hunter2"}),
            )
        )  # fmt: skip
        await add(
            insert(PushChannel).values(
                **values, id="ch", secret_sha256="", sealed=box.seal(sealed_context("ch"), {"a": 1})
            )
        )
        await add(insert(PushChannel).values(**values, id="ch_without", secret_sha256=""))
        await add(
            insert(WebhookSubscription).values(
                id="webhook_1", project_id=project_id, url="", triggers=[],
                secrets_sealed=box.seal(secrets_context("webhook_1"), [{"secret": "x", "until": None}]),
            )
        )  # fmt: skip
        context = f"idempotent_answers:{project_id}:k:é"
        await add(
            insert(StoredResponse).values(
                project_id=project_id, key="k:é", request_sha256="", status_code=201, body=box.seal(context, "{}")
            )
        )  # fmt: skip


async def tally(iterator):
    return {
        found.column: (found.rows, found.resealed, found.has_first_key, found.broken)
        async for found in iterator
    }


def rotate_keys(settings, *keys) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "DATABASE_URL": settings.required_database_url(),
        "CREDENTIALS_ENCRYPTION_KEYS": ",".join(keys),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "rotate-keys"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = await asyncio.to_thread(process.communicate, timeout=60)
    return process.returncode, stdout, stderr


async def test_everything_is_under_the_first_key_then_and_a_second_run_changes_nothing(
    sessions, settings, project
):
    await make_one_of_each(sessions, project.id, SecretBox([OLD]))
    code, stdout, stderr = await done(rotate_keys(settings, NEW, OLD))
    assert code == 0, stderr
    lines = dict(line.split(": ") for line in stdout.splitlines())
    assert set(lines) == set(CONTEXTS)
    assert lines["credentials.sealed"] == "2 in all, 2 encrypted anew, 0 had the first key"
    assert lines["push_channels.sealed"] == "1 in all, 1 encrypted anew, 0 had the first key"
    assert "The others can go" in stderr
    assert "hunter2" not in stdout + stderr

    async def rows():
        async with sessions() as session:
            return [
                (await session.execute(select(column.column).order_by(*column.key))).all()
                for column in repository.sealed_columns()
            ]

    before = await rows()
    code, stdout, _ = await done(rotate_keys(settings, NEW, OLD))
    assert code == 0
    assert all(" 0 encrypted anew" in line for line in stdout.splitlines())
    assert await rows() == before
    # The old key can go.
    found = await tally(service.inspect(sessions, SecretBox([NEW]), most_rows=10))
    assert all(rows == first and not broken for rows, _, first, broken in found.values())
    assert sum(rows for rows, *_ in found.values()) == 9
    async with sessions() as session:
        credentials = await session.get(Credentials, "cred_1")
    assert SecretBox([NEW]).open(context_of("cred_1"), credentials.sealed) == {"refresh_token": "hunter2"}


async def test_what_no_key_opens_is_reported_and_left_alone(sessions, settings, project):
    lost = SecretBox([Fernet.generate_key().decode()])
    await make_one_of_each(sessions, project.id, SecretBox([OLD]))
    async with transaction(sessions) as session:
        sealed = lost.seal(context_of("cred_1"), {})
        # Of another row.
        foreign = SecretBox([OLD]).seal(context_of("cred_1"), {})
        await session.execute(update(Credentials).where(Credentials.id == "cred_1").values(sealed=sealed))
        await session.execute(update(Credentials).where(Credentials.id == "cred_2").values(sealed=foreign))
    code, stdout, stderr = await done(rotate_keys(settings, NEW, OLD))
    assert code == 1
    assert (
        "credentials.sealed: 2 in all, 0 encrypted anew, 0 had the first key, 2 that no key opens" in stdout
    )
    assert "Put the key that they were stored with back" in stderr
    async with sessions() as session:
        stored = await session.scalars(select(Credentials.sealed).order_by(Credentials.id))
        assert stored.all() == [sealed, foreign]


async def test_a_newer_value_is_never_overwritten(sessions, settings, project):
    """Another transaction holds the row while the keys are rotated, and writes another value."""
    old, both = SecretBox([OLD]), SecretBox([NEW, OLD])
    await make_one_of_each(sessions, project.id, old)
    async with transaction(sessions) as session:
        # As a process that has not been restarted with the new key yet.
        newer = old.seal(context_of("cred_1"), {"refresh_token": "newer"})
        await session.execute(update(Credentials).where(Credentials.id == "cred_1").values(sealed=newer))
        await session.execute(update(Credentials).where(Credentials.id == "cred_2").values(version=2))
        rotating = asyncio.create_task(tally(service.rotate(sessions, both)))
        await asyncio.sleep(0.5)
        assert not rotating.done()
    found = await rotating
    assert found["credentials.sealed"] == (2, 2, 0, 0)
    async with sessions() as session:
        stored = await session.get(Credentials, "cred_1")
    assert SecretBox([NEW]).open(context_of("cred_1"), stored.sealed) == {"refresh_token": "newer"}


async def test_rows_that_go_or_change_between_reading_and_locking(sessions, settings, project, monkeypatch):
    old, new, both = SecretBox([OLD]), SecretBox([NEW]), SecretBox([NEW, OLD])
    await make_one_of_each(sessions, project.id, old)
    lock_values = repository.lock_values

    async def lock_after_others(session, column, keys):
        if str(column) == "credentials.sealed" and keys:
            async with transaction(sessions) as other:
                anew = new.seal(context_of("cred_1"), {"refresh_token": "anew"})
                await other.execute(update(Credentials).where(Credentials.id == "cred_1").values(sealed=anew))
                await other.execute(text("DELETE FROM credentials WHERE id = 'cred_2'"))
        return await lock_values(session, column, keys)

    monkeypatch.setattr(repository, "lock_values", lock_after_others)
    found = await tally(service.rotate(sessions, both))
    assert found["credentials.sealed"] == (1, 0, 1, 0)
    async with sessions() as session:
        stored = await session.get(Credentials, "cred_1")
    assert new.open(context_of("cred_1"), stored.sealed) == {"refresh_token": "anew"}


async def test_killed_and_run_again_beside_a_running_worker(sessions, settings, project, start_worker):
    """3,000 rows; the worker refreshes tokens and fails at feeds, all with secrets that are being rotated."""
    old = SecretBox([OLD])
    count = 3000
    made = [(new_id("cred"), new_id("cal")) for _ in range(count)]
    async with transaction(sessions) as session:
        await session.execute(
            insert(Credentials),
            [
                {
                    "id": credentials_id, "project_id": project.id, "platform": "ics",
                    "sealed": old.seal(context_of(credentials_id), {"feed_url": f"https://calendar.invalid/{number}"}),
                }
                for number, (credentials_id, _) in enumerate(made)
            ],
        )  # fmt: skip
        await session.execute(
            insert(Calendar),
            [
                {
                    "id": calendar_id,
                    "project_id": project.id,
                    "platform": "ics",
                    "credentials_id": credentials_id,
                }
                for credentials_id, calendar_id in made[:50]
            ],
        )
    from pydantic import SecretStr

    settings.credentials_encryption_keys = SecretStr(f"{NEW},{OLD}")
    await start_worker()

    async def under_first() -> int:
        found = await tally(service.inspect(sessions, SecretBox([NEW, OLD]), most_rows=count))
        return int(found["credentials.sealed"][2])

    killed = 0
    while killed < 3 and await under_first() < count:
        process = rotate_keys(settings, NEW, OLD)
        before = await under_first()
        while await under_first() == before and process.poll() is None:
            await asyncio.sleep(0)
        process.send_signal(signal.SIGKILL)
        await done(process)
        killed += 1
        assert await under_first() > before
    code, stdout, stderr = await done(rotate_keys(settings, NEW, OLD))
    assert code == 0, stderr
    assert f"credentials.sealed: {count} in all" in stdout
    box = SecretBox([NEW])
    async with sessions() as session:
        stored = dict((await session.execute(select(Credentials.id, Credentials.sealed))).all())
    for number, (credentials_id, _) in enumerate(made):
        assert box.open(context_of(credentials_id), stored[credentials_id]) == {
            "feed_url": f"https://calendar.invalid/{number}"
        }
    async with sessions() as session:
        codes = await session.scalars(select(Calendar.sync_failure_code).distinct())
        assert "seal_broken" not in codes.all()


async def test_secrets_that_the_api_stores_are_found(api, sessions, settings):
    """Whatever looks like a sealed value in any column of any table is in one that is rotated."""
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/calendars", {"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"}),
        ("/calendars", {"platform": "google", "client_id": "c", "client_secret": "s", "refresh_token": "r"}),
        ("/webhooks", {"url": "https://example.com/hook", "triggers": ["calendar.events_update"]}),
        ("/oauth/apps", {"platform": "google", "client_id": "c", "client_secret": "s", "redirect_uris": ["https://example.com/"]}),
        ("/oauth/sessions", {"platform": "google", "redirect_uri": "https://example.com/"}),
    ]  # fmt: skip
    for path, body in calls:
        response = await api.post(
            f"/api/v1{path}",
            json=body,
            headers={"Idempotency-Key": f"{path} {body.get('platform')}"},
        )
        assert response.status_code == 201, response.text
    known = {str(column) for column in repository.sealed_columns()}
    found = set()
    async with sessions() as session:
        for table in Base.metadata.tables.values():
            for row in (await session.execute(select(table))).mappings():
                for name, value in row.items():
                    whole = value if isinstance(value, bytes) else json.dumps(value, default=str).encode()
                    if b"gAAAA" in whole:
                        found.add(f"{table.name}.{name}")
    assert found <= known
    assert len(found) >= 5
