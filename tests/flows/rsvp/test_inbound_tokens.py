"""Who may post mails to `POST /rsvp/inbound`: Messages with its token, or an API key."""

import base64
import hashlib
from datetime import UTC, datetime

import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from pydantic import SecretStr

from tests.flows.rsvp.replies import guest_statuses, reply

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendar@example.net")

SECRET = "a-secret-of-the-messages-webhook-channel"


def webhook_token(mail: bytes, secret: str = SECRET, **claims) -> str:
    now = int(datetime.now(UTC).timestamp())
    values = {
        "iss": "messages-webhook",
        "iat": now,
        "exp": now + 300,
        "jti": "1",
        "sub": "Ada@Example.com",
        "cid": "c",
        "body_sha256": hashlib.sha256(mail).hexdigest(),
        **claims,
    }
    values = {name: value for name, value in values.items() if value is not None}
    return jwt.encode({"alg": "HS256"}, values, OctKey.import_key(secret))


def unsigned_token(mail: bytes) -> str:
    claims = webhook_token(mail).split(".")[1]
    header = base64.urlsafe_b64encode(orjson.dumps({"alg": "none"})).decode().rstrip("=")
    return f"{header}.{claims}."


async def test_messages_may_post_with_its_token(browser, api, settings, event):
    settings.messages_webhook_secret = SecretStr(SECRET)
    settings.messages_reply_senders = "unmarked"
    mail = reply(event)

    async def post(token, content=mail):
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "message/rfc822",
            "X-StMsg-Is-Spam": "false",
        }
        return (await browser.post("/api/v1/rsvp/inbound", content=content, headers=headers)).status_code

    past = int(datetime.now(UTC).timestamp()) - 1000
    for bad in (
        webhook_token(mail, secret="another-secret-of-the-messages-webhook"),
        webhook_token(mail, iss="eve"),
        webhook_token(mail, exp=past),
        webhook_token(mail, exp=None),
        webhook_token(mail, iat=None),
        unsigned_token(mail),
        webhook_token(mail, body_sha256="0" * 64),
        webhook_token(mail, body_sha256=None),
        webhook_token(mail, sub=None),
        "a.b.c",
    ):
        assert await post(bad) == 401
    assert await post(webhook_token(mail), content=mail + b"x") == 401
    assert await post(webhook_token(mail, sub="eve@example.com")) == 200
    assert set((await guest_statuses(api, event)).values()) == {"needs_action"}
    assert await post(webhook_token(mail)) == 200
    assert (await guest_statuses(api, event))["bob@example.org"] == "accepted"


async def test_without_the_secret_only_an_api_key_may_post(browser, event):
    mail = reply(event)
    headers = {"Authorization": f"Bearer {webhook_token(mail)}"}
    response = await browser.post("/api/v1/rsvp/inbound", content=mail, headers=headers)
    assert response.status_code == 401
    assert "MESSAGES_WEBHOOK_SECRET" in response.json()["detail"]
    assert (await browser.post("/api/v1/rsvp/inbound", content=mail)).status_code == 401
