"""OAuth apps and sessions over HTTP, and calendars that share credentials.

See docs/reference/http-api.md, "OAuth apps and sessions".
"""

import asyncio

from sqlalchemy import func, select, update

from app.core.crypto import SecretBox
from app.core.db import transaction
from app.models import Calendar, OAuthApp, OAuthSession

APPS = "/api/v1/oauth/apps"
SESSIONS = "/api/v1/oauth/sessions"
CALENDARS = "/api/v1/calendars"
RETURN = "https://app.example.com/connected"
GOOGLE = {"platform": "google", "client_id": "id-1", "client_secret": "hidden-1", "redirect_uris": [RETURN]}
FIELDS = {"id", "platform", "client_id", "redirect_uris", "callback_url", "created_at", "updated_at"}
CALENDAR = {
    "platform": "google", "client_id": "id-1", "client_secret": "hidden-1", "refresh_token": "hidden-2",
    "platform_uuid": "one",
}  # fmt: skip


async def create(api, **fields):
    response = await api.post(APPS, json={**GOOGLE, **fields})
    assert response.status_code == 201, response.text
    return response.json()


async def test_an_app_is_created_read_changed_and_removed(api, settings, sessions):
    made = await create(api)
    assert made.keys() == FIELDS
    assert made["callback_url"] == "http://testserver/oauth/google/callback"
    assert made["redirect_uris"] == [RETURN]
    for name in (made["id"], "google"):
        assert (await api.get(f"{APPS}/{name}")).json() == made
    assert (await api.get(APPS)).json() == {"next": None, "previous": None, "results": [made]}

    changed = await api.patch(f"{APPS}/google", json={"client_id": "id-2", "client_secret": "hidden-9"})
    assert changed.status_code == 200
    assert changed.json() == made | {"client_id": "id-2", "updated_at": changed.json()["updated_at"]}
    async with sessions() as session:
        stored = (await session.execute(select(OAuthApp))).scalar_one()
    opened = SecretBox(settings.fernet_keys).open(f"oauth_apps:{stored.id}", stored.sealed)
    assert opened == {"client_secret": "hidden-9"}

    deleted = await api.delete(f"{APPS}/{made['id']}")
    assert (deleted.status_code, deleted.content) == (200, b"")
    assert (await api.get(f"{APPS}/google")).status_code == 404
    assert (await api.get(APPS)).json()["results"] == []


async def test_a_secret_is_in_no_response(api):
    made = await api.post(APPS, json=GOOGLE)
    responses = [made, await api.get(APPS), await api.get(f"{APPS}/google")]
    responses.append(await api.patch(f"{APPS}/google", json={"client_secret": "hidden-3"}))
    responses.append(await api.post(SESSIONS, json={"platform": "google", "redirect_uri": RETURN}))
    assert all("hidden" not in response.text for response in responses)


async def test_a_project_has_one_app_for_each_platform(api, other_api):
    responses = await asyncio.gather(*(api.post(APPS, json=GOOGLE) for _ in range(5)))
    assert sorted(response.status_code for response in responses) == [201, 400, 400, 400, 400]
    refused = next(response for response in responses if response.status_code == 400)
    assert refused.json() == {
        "platform": ["This project has an OAuth app for this platform: change it with PATCH."]
    }
    await create(api, platform="microsoft")
    await create(other_api)


async def test_another_projects_app_is_not_there(api, other_api):
    made = await create(api)
    for name in (made["id"], "google", "microsoft", "oapp_0000000000000000", "nonsense"):
        for response in (
            await other_api.get(f"{APPS}/{name}"),
            await other_api.patch(f"{APPS}/{name}", json={"client_id": "x"}),
            await other_api.delete(f"{APPS}/{name}"),
        ):
            assert response.status_code == 404
            assert response.json() == {"error": "OAuth app not found"}
    assert (await other_api.get(APPS)).json()["results"] == []
    response = await other_api.post(SESSIONS, json={"platform": "google", "redirect_uri": RETURN})
    assert response.status_code == 400
    assert (await api.get(f"{APPS}/google")).json() == made


async def test_a_redirect_address_must_be_an_absolute_web_address(api):
    for address in (
        "", " ", "/connected", "app.example.com/connected", "//app.example.com/x", "javascript:alert(1)",
        "ftp://app.example.com/x", "https://", "https:///x", "https://user:pass@app.example.com/x",
        "https://app.example.com/x#here", "https://app.example.com/a b", "https://app.example.com\\@evil.com",
        "https://app.example.com/\r\nX: y", "https://[::1", "https://a.com:99999/", "x" * 3000,
    ):  # fmt: skip
        response = await api.post(APPS, json={**GOOGLE, "redirect_uris": [RETURN, address]})
        assert response.status_code == 400, address
        assert response.json().keys() == {"redirect_uris"}


async def test_bad_input_about_an_app_names_its_field(api):
    for change, field in (
        ({"platform": "ics"}, "platform"),
        ({"platform": None}, "platform"),
        ({"client_id": " "}, "client_id"),
        ({"client_secret": ""}, "client_secret"),
        ({"redirect_uris": []}, "redirect_uris"),
        ({"redirect_uris": RETURN}, "redirect_uris"),
        ({"redirect_uris": ["https://a.com"] * 51}, "redirect_uris"),
        ({"tenant": "x"}, "tenant"),
    ):
        response = await api.post(APPS, json={**GOOGLE, **change})
        assert response.status_code == 400, change
        assert response.json().keys() == {field}


async def test_an_app_is_changed_as_strictly_as_it_is_made(api):
    made = await create(api)
    for change, field in (
        ({"platform": "microsoft"}, "platform"),
        ({"client_id": ""}, "client_id"),
        ({"client_secret": " "}, "client_secret"),
        ({"redirect_uris": []}, "redirect_uris"),
        ({"redirect_uris": ["/x"]}, "redirect_uris"),
    ):
        response = await api.patch(f"{APPS}/google", json=change)
        assert response.status_code == 400
        assert response.json().keys() == {field}
    assert (await api.get(f"{APPS}/google")).json() == made


async def test_the_same_idempotency_key_makes_one_app_and_one_session(api, sessions):
    headers = {"Idempotency-Key": "k-1"}
    responses = [await api.post(APPS, json=GOOGLE, headers=headers) for _ in range(2)]
    assert [response.status_code for response in responses] == [201, 201]
    assert responses[0].json() == responses[1].json()
    headers = {"Idempotency-Key": "k-2"}
    body = {"platform": "google", "redirect_uri": RETURN}
    responses = [await api.post(SESSIONS, json=body, headers=headers) for _ in range(2)]
    assert responses[0].json() == responses[1].json()
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(OAuthSession)) == 1


async def test_bad_input_about_a_session_names_its_field(api):
    await create(api)
    for change, field in (
        ({"platform": "ics"}, "platform"),
        ({"platform": "microsoft"}, "platform"),  # there is no app for it
        ({"redirect_uri": None}, "redirect_uri"),
        ({"redirect_uri": RETURN + "/"}, "redirect_uri"),
        ({"deduplication_key": " "}, "deduplication_key"),
        ({"metadata": {}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"platform_uuid": ""}, "platform_uuid"),
        ({"login_hint": "x" * 321}, "login_hint"),
        ({"scope": "everything"}, "scope"),
    ):
        response = await api.post(SESSIONS, json={"platform": "google", "redirect_uri": RETURN, **change})
        assert response.status_code == 400, change
        assert response.json().keys() == {field}


async def test_a_session_that_could_not_end_well_is_refused_at_once(api):
    await create(api)
    feed = {"platform": "ics", "feed_url": "https://example.com/x.ics", "deduplication_key": "feed"}
    await api.post(CALENDARS, json=feed)
    await api.post(CALENDARS, json={**CALENDAR, "deduplication_key": "one"})
    body = {"platform": "google", "redirect_uri": RETURN}
    response = await api.post(SESSIONS, json={**body, "deduplication_key": "feed"})
    assert response.status_code == 400
    assert response.json() == {
        "deduplication_key": ["The calendar with this deduplication key is of platform ics."]
    }
    response = await api.post(SESSIONS, json={**body, "deduplication_key": "one", "platform_uuid": "two"})
    assert response.status_code == 400
    assert response.json().keys() == {"platform_uuid"}
    for right in ({}, {"platform_uuid": "one"}):
        response = await api.post(SESSIONS, json={**body, "deduplication_key": "one", **right})
        assert response.status_code == 201


async def test_sessions_long_past_are_forgotten(api, sessions):
    await create(api)
    body = {"platform": "google", "redirect_uri": RETURN}
    for _ in range(3):
        await api.post(SESSIONS, json=body)
    async with transaction(sessions) as session:
        await session.execute(
            update(OAuthSession).values(expires_at=OAuthSession.expires_at - func.make_interval(0, 0, 0, 2))
        )
    await api.post(SESSIONS, json=body)
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(OAuthSession)) == 1


async def test_deleting_an_app_ends_its_sessions_and_leaves_its_calendars(api, sessions):
    await create(api)
    await api.post(SESSIONS, json={"platform": "google", "redirect_uri": RETURN})
    made = (await api.post(CALENDARS, json=CALENDAR)).json()
    await api.delete(f"{APPS}/google")
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(OAuthSession)) == 0
    assert (await api.get(f"{CALENDARS}/{made['id']}")).json() == made


# --- credentials_of, remote_calendars --------------------------------------------------------------------


async def test_the_seeds_own_way_still_works(api):
    response = await api.post(CALENDARS, json=CALENDAR)
    assert response.status_code == 201
    assert response.json()["owner_email"] is None


async def test_a_second_calendar_shares_the_credentials_of_the_first(api, sessions):
    first = (await api.post(CALENDARS, json=CALENDAR)).json()
    body = {"credentials_of": first["id"], "platform_uuid": "two", "deduplication_key": "k"}
    second = await api.post(CALENDARS, json=body)
    assert second.status_code == 201, second.text
    assert second.json() == first | {
        name: second.json()[name]
        for name in ("id", "platform_uuid", "deduplication_key", "created_at", "updated_at")
    }
    async with sessions() as session:
        assert await session.scalar(select(func.count(func.distinct(Calendar.credentials_id)))) == 1
    again = await api.post(CALENDARS, json={**body, "platform_uuid": "three"})
    assert again.status_code == 400
    assert again.json().keys() == {"deduplication_key"}


async def test_credentials_of_must_name_a_connected_calendar_of_this_project(api, other_api, sessions):
    first = (await api.post(CALENDARS, json=CALENDAR)).json()
    theirs = (await other_api.post(CALENDARS, json=CALENDAR)).json()
    feed = (
        await api.post(CALENDARS, json={"platform": "ics", "feed_url": "https://example.com/x.ics"})
    ).json()
    for body, field in (
        ({"credentials_of": theirs["id"]}, "credentials_of"),
        ({"credentials_of": feed["id"]}, "credentials_of"),
        ({"credentials_of": "nonsense"}, "credentials_of"),
        ({"credentials_of": 5}, "credentials_of"),
        ({"credentials_of": first["id"], "platform": "microsoft"}, "platform"),
        ({"credentials_of": first["id"], "platform": "ics"}, "platform"),
        ({"credentials_of": first["id"], "refresh_token": "r"}, "refresh_token"),
    ):
        response = await api.post(CALENDARS, json=body)
        assert response.status_code == 400, body
        assert response.json().keys() == {field}
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).where(Calendar.id == first["id"]).values(state="disconnected"))
    response = await api.post(CALENDARS, json={"credentials_of": first["id"], "platform": "google"})
    assert response.status_code == 400
    assert "reconnect" in response.json()["credentials_of"][0]


async def test_only_calendars_of_accounts_have_siblings_to_list(api, other_api):
    feed = (
        await api.post(CALENDARS, json={"platform": "ics", "feed_url": "https://example.com/x.ics"})
    ).json()
    response = await api.get(f"{CALENDARS}/{feed['id']}/remote_calendars")
    assert response.status_code == 400
    assert response.json().keys() == {"error"}
    first = (await api.post(CALENDARS, json=CALENDAR)).json()
    response = await other_api.get(f"{CALENDARS}/{first['id']}/remote_calendars")
    assert response.status_code == 404
    assert response.json() == {"error": "Calendar not found"}


async def test_every_route_but_the_callback_wants_an_api_key(app, api):
    made = await create(api)
    del api.headers["Authorization"]
    for method, path in (
        ("GET", APPS), ("POST", APPS), ("GET", f"{APPS}/{made['id']}"), ("PATCH", f"{APPS}/google"),
        ("DELETE", f"{APPS}/google"), ("POST", SESSIONS), ("GET", f"{CALENDARS}/cal_0000000000000000/remote_calendars"),
    ):  # fmt: skip
        assert (await api.request(method, path, json={})).status_code == 401
