"""New client secrets of an OAuth app, and the calendars that use them."""

import asyncio

from sqlalchemy import text, update

from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.http import operator_client
from app.credentials.store import CredentialStore
from app.models import Calendar, Credentials
from app.providers.base import ClientMisconfigured
from tests import factories
from tests.flows.oauth.browser import APPS, MAIN


def rotate(google, secret):
    """Give the client this secret at Google."""
    google.fake.add_client(google.fake.client_id, secret, redirect_uris=[f"{MAIN}/oauth/google/callback"])


async def refreshes(settings, sessions, calendar_id):
    """Test whether Google gives a new access token for the stored credentials."""
    async with transaction(sessions) as session:
        calendar = await session.get_one(Calendar, calendar_id)
        cached = {"access_token_sealed": None, "access_token_expires_at": None}
        await session.execute(update(Credentials).values(**cached))
    box = SecretBox(settings.fernet_keys)
    async with operator_client() as client:
        store = CredentialStore(settings=settings, sessions=sessions, box=box, client=client)
        try:
            return bool(await store.access_token(calendar.credentials_id or "", None))
        except ClientMisconfigured:
            return False


async def stored_credentials(sessions):
    async with sessions() as session:
        statement = text("SELECT id, xmin::text, version, sealed FROM credentials ORDER BY id")
        return [tuple(row) for row in await session.execute(statement)]


async def test_a_new_secret_of_the_app_writes_one_row_however_many_calendars_it_connected(
    google, settings, sessions
):
    ids = [await google.connect(deduplication_key=f"user-{number}") for number in range(5)]
    before = await stored_credentials(sessions)
    # A token refresh that holds one of the rows does not hold up the request, nor the other way round.
    async with transaction(sessions) as session:
        await session.execute(text("SELECT FROM credentials FOR UPDATE"))
        async with asyncio.timeout(3):
            response = await google.api.patch(f"{APPS}/google", json={"client_secret": "rotated"})
    assert response.status_code == 200
    assert await stored_credentials(sessions) == before
    rotate(google, "rotated")
    for calendar_id in ids:
        assert await refreshes(settings, sessions, calendar_id)


async def test_a_rotated_secret_outlives_the_app_and_its_change_to_another_client(google, settings, sessions):
    calendar_id = await google.connect()
    await google.api.patch(f"{APPS}/google", json={"client_secret": "rotated"})
    await google.api.patch(f"{APPS}/google", json={"client_id": "another", "client_secret": "another's"})
    rotate(google, "rotated")
    assert await refreshes(settings, sessions, calendar_id)
    await google.api.delete(f"{APPS}/google")
    rotate(google, "rotated")
    assert await refreshes(settings, sessions, calendar_id)


async def test_the_secret_that_was_given_last_counts(google, settings, sessions):
    calendar_id = await google.connect()
    path = f"/api/v1/calendars/{calendar_id}"
    await google.api.patch(f"{APPS}/google", json={"client_secret": "second"})
    # A new refresh token brings no secret of its own.
    await google.api.patch(path, json={"refresh_token": google.fake.add_grant()})
    rotate(google, "second")
    assert await refreshes(settings, sessions, calendar_id)
    await google.api.patch(path, json={"client_secret": "third"})
    rotate(google, "third")
    assert await refreshes(settings, sessions, calendar_id)
    await google.api.patch(f"{APPS}/google", json={"client_secret": "fourth"})
    rotate(google, "fourth")
    assert await refreshes(settings, sessions, calendar_id)


async def test_a_new_secret_reaches_no_other_projects_calendar(google, settings, sessions, other_project):
    mine = await google.connect()
    secrets = {"client_secret": google.fake.client_secret, "refresh_token": google.fake.add_grant()}
    theirs = await factories.add_calendar(
        sessions, settings, other_project.id, client_id=google.fake.client_id, secrets=secrets
    )
    await google.api.patch(f"{APPS}/google", json={"client_secret": "wrong"})
    assert await refreshes(settings, sessions, theirs)
    assert not await refreshes(settings, sessions, mine)


async def test_a_new_secret_of_the_app_reaches_the_calendars_that_it_connected(google, settings, sessions):
    calendar_id = await google.connect()
    google.fake.add_client(google.fake.client_id, "rotated", redirect_uris=[f"{MAIN}/oauth/google/callback"])
    await google.api.patch(f"{APPS}/google", json={"client_secret": "rotated"})
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, calendar_id)
    assert (await google.calendar(calendar_id))["last_successful_sync_at"] is not None
