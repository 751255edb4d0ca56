"""GET /api/v1/mailboxes (docs/reference/http-api.md, "Hosted calendars and invitations")."""

import pytest

from tests.fakes.messages import FakeMessages, Fault

PATH = "/api/v1/mailboxes"
OWNER = "ada@example.com"


@pytest.fixture
def fake(fake_messages: FakeMessages) -> FakeMessages:
    return fake_messages


async def test_the_mailboxes_of_a_user_are_listed(fake, api):
    own = fake.add_mailbox(OWNER, name="Ada", admin=OWNER)
    team = fake.add_mailbox("team@example.com", editor=OWNER)
    fake.add_mailbox("eve@example.com", admin="eve@example.com")
    response = await api.get(PATH, params={"user_email": "ADA@example.com"})
    assert response.status_code == 200
    assert response.json() == {
        "results": [
            {"mailbox_id": own.id, "email": OWNER, "name": "Ada", "role": "admin", "can_send": True},
            {
                "mailbox_id": team.id,
                "email": "team@example.com",
                "name": None,
                "role": "editor",
                "can_send": False,
            },
        ]
    }


async def test_a_user_without_mailboxes_has_an_empty_list(fake, api):
    response = await api.get(PATH, params={"user_email": "unknown@example.com"})
    assert (response.status_code, response.json()) == (200, {"results": []})


async def test_a_messages_that_fails_is_502(fake, api):
    fake.look_up_faults.append(Fault(500))
    response = await api.get(PATH, params={"user_email": OWNER})
    assert (response.status_code, response.json()) == (502, {"error": "Messages answered 500."})


async def test_a_wrong_key_is_502_and_not_shown(fake, api):
    fake.api_key = "another"
    response = await api.get(PATH, params={"user_email": OWNER})
    assert response.status_code == 502
    assert "MESSAGES_API_KEY" in response.json()["error"]
    assert "messages-key-" not in response.text


async def test_a_throttled_messages_is_429(fake, api):
    fake.look_up_faults.append(Fault(429, {"Retry-After": "9"}))
    response = await api.get(PATH, params={"user_email": OWNER})
    assert (response.status_code, response.headers["Retry-After"]) == (429, "9")


async def test_with_the_feature_off_it_is_404_with_the_reason(api):
    response = await api.get(PATH, params={"user_email": OWNER})
    assert response.status_code == 404
    assert "FEATURE_MESSAGES_INTEGRATION" in response.json()["error"]


@pytest.mark.parametrize(
    "query", [{}, {"user_email": ""}, {"user_email": "no address"}, {"user_email": OWNER, "x": "y"}]
)
async def test_a_bad_query_is_400(fake, api, query):
    response = await api.get(PATH, params=query)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert fake.look_ups == []


async def test_it_needs_an_api_key(fake, api):
    response = await api.get(PATH, params={"user_email": OWNER}, headers={"Authorization": ""})
    assert response.status_code == 401


async def test_a_mailbox_with_a_name_that_cannot_be_shown_is_listed_without_it(fake, api):
    fake.add_mailbox(OWNER, name="Ada\x00\r\nBcc: eve", admin=OWNER)
    (found,) = (await api.get(PATH, params={"user_email": OWNER})).json()["results"]
    assert found["name"] == "Ada Bcc: eve"
    calendar = {"platform": "local", "name": "x", "owner_email": OWNER}
    made = await api.post("/api/v1/calendars", json=calendar)
    assert made.json()["sending_identity"]["name"] == "Ada Bcc: eve"


async def test_an_address_with_line_breaks_is_no_mailbox(fake, api):
    fake.add_mailbox("ada@example.com\r\nBcc: x@example.org", admin=OWNER)
    assert (await api.get(PATH, params={"user_email": OWNER})).status_code == 502
