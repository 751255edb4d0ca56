"""Connecting again with another account."""

import asyncio

import pytest
from sqlalchemy import func, select, text, update

from app.core.db import transaction
from app.core.ids import new_id
from app.models import Calendar, Credentials
from tests import factories
from tests.fakes.google import CALENDAR_SCOPE
from tests.flows.oauth.browser import assert_error_sent, become_eve, calendars, disconnect, query, secrets_of


@pytest.fixture
async def shared(google, sessions):
    """(user-42's calendar, user-43's): both of ada's account, on one grant, and disconnected."""
    first = await google.connect(deduplication_key="user-42")
    team = google.fake.add_calendar("team", summary="Team")
    body = {"credentials_of": first, "platform_uuid": team, "deduplication_key": "user-43"}
    second = (await google.api.post("/api/v1/calendars", json=body)).json()["id"]
    for calendar_id in (first, second):
        await disconnect(sessions, calendar_id)
    return first, second


async def test_another_account_gets_the_one_calendar_and_leaves_the_others_alone(
    google, settings, sessions, shared
):
    first, second = shared
    before = await secrets_of(sessions, settings, second)
    untouched = await google.calendar(second)
    become_eve(google.fake)
    assert await google.connect(deduplication_key="user-42") == first
    assert await google.calendar(second) == untouched
    assert await secrets_of(sessions, settings, second) == before
    calendar = await google.calendar(first)
    assert (calendar["state"], calendar["owner_email"]) == ("connected", "eve@example.com")
    assert (await secrets_of(sessions, settings, first))["refresh_token"] != before["refresh_token"]
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, first)
    assert (await google.calendar(first))["last_successful_sync_at"] is not None
    # From now on they have separate credentials, and no unused ones are left.
    google.fake.signed_in = None
    await google.connect(deduplication_key="user-43")
    assert (await google.calendar(first))["owner_email"] == "eve@example.com"
    assert (await google.calendar(second))["state"] == "connected"
    for calendar_id in shared:
        await google.api.delete(f"/api/v1/calendars/{calendar_id}")
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 0


async def test_an_account_is_the_same_by_its_id_and_not_by_its_address(google, sessions, shared):
    first, second = shared
    google.fake.signed_in = (google.fake.user_id, "ada.king@example.com")  # she married
    await google.connect(deduplication_key="user-42")
    assert {row.state for row in await calendars(sessions)} == {"connected"}
    assert (await google.calendar(second))["owner_email"] == "ada.king@example.com"
    google.fake.signed_in = (
        "208900000000000000000",
        "ada.king@example.com",
    )  # another person got her address
    await disconnect(sessions, first)
    await disconnect(sessions, second)
    await google.connect(deduplication_key="user-42")
    assert (await google.calendar(second))["state"] == "disconnected"


@pytest.mark.parametrize(
    ("email", "second_state"), [("Ada@example.com", "connected"), ("eve@x.org", "disconnected")]
)
async def test_of_an_account_without_a_stored_id_the_address_decides(
    google, sessions, shared, email, second_state
):
    """Calendars that were connected by an earlier version, or by the application's own flow."""
    async with transaction(sessions) as session:
        await session.execute(update(Credentials).values(account_id=None))
    google.fake.signed_in = ("208900000000000000000", email)
    await google.connect(deduplication_key="user-42")
    assert (await google.calendar(shared[1]))["state"] == second_state


async def test_an_account_that_does_not_show_itself_counts_as_another_one(google, sessions, shared):
    google.fake.granted_scopes = (CALENDAR_SCOPE,)
    await google.connect(deduplication_key="user-42")
    assert (await google.calendar(shared[0]))["state"] == "connected"
    assert (await google.calendar(shared[1]))["state"] == "disconnected"


async def test_new_credentials_from_the_application_are_of_whatever_account(google, sessions, shared):
    first, _ = shared
    patch = {"client_secret": google.fake.client_secret, "refresh_token": google.fake.refresh_token}
    await google.api.patch(f"/api/v1/calendars/{first}", json=patch)
    assert {row.state for row in await calendars(sessions)} == {"connected"}
    async with sessions() as session:
        assert await session.scalar(select(Credentials.account_id)) is None


async def test_the_application_may_refuse_another_account(google, settings, sessions, shared):
    first, second = shared
    wanted = {"deduplication_key": "user-42", "same_account": True}
    before = [await google.calendar(calendar_id) for calendar_id in shared]
    secrets = await secrets_of(sessions, settings, first)
    become_eve(google.fake)
    assert_error_sent(await google.run(**wanted), "account_mismatch", "another Google account")
    assert [await google.calendar(calendar_id) for calendar_id in shared] == before
    assert await secrets_of(sessions, settings, first) == secrets
    # No account is connected with a new key yet, so any account is accepted.
    await google.connect(deduplication_key="user-44", same_account=True)
    google.fake.signed_in = None
    assert await google.connect(**wanted) == first
    assert (await google.calendar(second))["state"] == "connected"


async def test_two_accounts_at_once_move_no_other_calendar(google, sessions, settings, shared):
    first, second = shared
    urls = []
    for number in range(6):
        google.fake.signed_in = (f"20890000000000000000{number}", f"eve{number}@example.com")
        urls.append(await google.agree(await google.start(deduplication_key="user-42")))
    before = await secrets_of(sessions, settings, second)

    async def add_another():
        body = {"credentials_of": second, "platform_uuid": "team"}
        return await google.api.post("/api/v1/calendars", json=body)

    locations, _ = await asyncio.gather(
        asyncio.gather(*(google.come_back(url) for url in urls)), add_another()
    )
    assert {query(location)["calendar_id"] for location in locations} == {first}
    assert (await google.calendar(second))["state"] == "disconnected"
    assert await secrets_of(sessions, settings, second) == before
    async with sessions() as session:
        # One more than the shared ones: the later account found credentials that were not shared.
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 2


async def test_a_calendar_that_is_added_at_the_same_time_is_not_moved_either(google, sessions, settings):
    """It is added to the account while another account takes the calendar that names it."""
    first = await google.connect(deduplication_key="user-42")
    before = await secrets_of(sessions, settings, first)
    become_eve(google.fake)
    await disconnect(sessions, first)  # so that the consent screen is shown
    back = await google.agree(await google.start(deduplication_key="user-42"))
    async with transaction(sessions) as session:
        # What `credentials_of` does, up to its commit.
        source = await session.get_one(Calendar, first, with_for_update=True)
        fields = {
            "project_id": source.project_id,
            "platform": "google",
            "credentials_id": source.credentials_id,
        }
        session.add(Calendar(id=new_id("cal"), platform_uuid="team", **fields))
        await session.flush()
        coming = asyncio.create_task(google.come_back(back))
        async with asyncio.timeout(10):
            while not await session.scalar(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")):
                await asyncio.sleep(0.02)
    assert query(await coming) == {"calendar_id": first}
    second = next(row for row in await calendars(sessions) if row.id != first)
    assert await secrets_of(sessions, settings, second.id) == before
