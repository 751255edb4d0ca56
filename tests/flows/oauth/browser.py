"""Steps of a browser that connects a calendar, and what the application stores of it."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sqlalchemy import select, update

from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.http import httpx
from app.credentials.sealed import context_of
from app.models import Calendar, Credentials

RETURN = "https://app.example.com/connected"
APPS = "/api/v1/oauth/apps"
SESSIONS = "/api/v1/oauth/sessions"
MAIN = "http://testserver"


@dataclass
class Flow:
    """One platform's fake, an OAuth app for it, and the steps of a browser."""

    platform: str
    fake: Any
    api: httpx.AsyncClient
    browser: httpx.AsyncClient

    async def start(self, **fields):
        body = {"platform": self.platform, "redirect_uri": RETURN, **fields}
        response = await self.api.post(SESSIONS, json=body)
        assert response.status_code == 201, response.text
        assert response.json().keys() == {"authorization_url", "expires_at"}
        return response.json()["authorization_url"]

    async def agree(self, authorization_url):
        """Agree on the provider's page; return the callback URL that it redirects to."""
        response = await self.browser.get(authorization_url)
        assert response.status_code == 302, response.text
        return response.headers["location"]

    async def come_back(self, callback_url):
        response = await self.browser.get(callback_url)
        assert response.status_code == 302, response.text
        assert response.headers["cache-control"] == "no-store"
        return response.headers["location"]

    async def run(self, **fields):
        return await self.come_back(await self.agree(await self.start(**fields)))

    async def connect(self, **fields):
        """Connect a calendar; return its id."""
        location = await self.run(**fields)
        assert location.startswith(f"{RETURN}?calendar_id=cal_"), location
        return query(location)["calendar_id"]

    async def calendar(self, calendar_id):
        return (await self.api.get(f"/api/v1/calendars/{calendar_id}")).json()


def query(url):
    return dict(parse_qsl(urlsplit(url).query))


def replace_query(url, **values):
    """Set parameters of the query; an empty value removes its parameter."""
    parts = urlsplit(url)
    joined = {name: value for name, value in (query(url) | values).items() if value}
    return urlunsplit(parts._replace(query=urlencode(joined)))


async def make_flow(platform, fake, api, app):
    callback = f"{MAIN}/oauth/{platform}/callback"
    fake.add_client(fake.client_id, fake.client_secret, redirect_uris=[callback])
    body = {
        "platform": platform, "client_id": fake.client_id, "client_secret": fake.client_secret, "redirect_uris": [RETURN],
    }  # fmt: skip
    response = await api.post(APPS, json=body)
    assert response.status_code == 201, response.text
    assert response.json()["callback_url"] == callback
    browser = httpx.AsyncClient(mounts={MAIN: httpx.ASGITransport(app)}, trust_env=False)
    return Flow(platform, fake, api, browser)


async def calendars(sessions):
    async with sessions() as session:
        return list(await session.scalars(select(Calendar)))


async def secrets_of(sessions, settings, calendar_id):
    async with sessions() as session:
        stored = (
            await session.execute(
                select(Credentials)
                .join(Calendar, Calendar.credentials_id == Credentials.id)
                .where(Calendar.id == calendar_id)
            )
        ).scalar_one()
    return SecretBox(settings.fernet_keys).open(context_of(stored.id), stored.sealed)


async def disconnect(sessions, calendar_id):
    async with transaction(sessions) as session:
        await session.execute(
            update(Calendar)
            .where(Calendar.id == calendar_id)
            .values(state="disconnected", connection_failure_data={"error": "revoked", "code": "x"})
        )


def assert_error_sent(location, error, sentence):
    """Check that the browser is sent to the application with this error and nothing else."""
    assert location.startswith(f"{RETURN}?"), location
    sent = query(location)
    assert sent.keys() == {"error", "error_description"}
    assert sent["error"] == error
    assert sentence in sent["error_description"]


def become_eve(fake):
    """Sign another person in in the browser."""
    fake.signed_in = ("208900000000000000000", "eve@example.com")
