"""The Messages client against a fake that keeps to docs/reference/messages.md."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from app.core.http import operator_client
from app.mail.lasuite import client as client_module
from app.mail.lasuite import mailboxes as mailboxes_module
from app.mail.lasuite.errors import (
    MailRefused,
    MessagesOff,
    MessagesRefused,
    MessagesThrottled,
    MessagesUnavailable,
)
from app.mail.lasuite.mailboxes import Mailbox, Messages
from app.settings import Settings
from tests.fakes.messages import FakeMessages, Fault
from tests.fakes.server import serve

OWNER = "ada@example.com"
MAIL = b"From: Ada <ada@example.com>\r\nTo: bob@example.org\r\nSubject: hello\r\n\r\nhello\r\n"


@pytest.fixture
async def there(clean_environment: pytest.MonkeyPatch) -> AsyncIterator[SimpleNamespace]:
    """`fake`, `settings`, `messages`, and the fake's `box` of Ada."""
    fake = FakeMessages()
    async with serve(fake) as url, operator_client() as http:
        settings = Settings(
            feature_messages_integration=True,
            messages_api_url=url,
            messages_api_key=SecretStr(fake.api_key),
            messages_channel_id=fake.channel_id,
        )
        box = fake.add_mailbox(OWNER, name="Ada", admin=OWNER)
        yield SimpleNamespace(fake=fake, settings=settings, messages=Messages(settings, http), box=box)


async def submit(there: SimpleNamespace, mail: bytes = MAIL, mailbox_id: str | None = None) -> Any:
    return await there.messages.client.submit(mailbox_id or there.box.id, ["bob@example.org"], mail)


async def test_mailboxes_are_listed_with_the_users_role(there):
    team = there.fake.add_mailbox("team@example.com", viewer=OWNER)
    found = await there.messages.list_mailboxes("Ada@EXAMPLE.com")
    assert found == [
        Mailbox(there.box.id, OWNER, "Ada", "admin"),
        Mailbox(team.id, "team@example.com", None, "viewer"),
    ]
    assert [box.can_send for box in found] == [True, False]
    assert there.fake.look_ups == [{"user_email": "Ada@EXAMPLE.com"}, {"user_email": OWNER}]


async def test_a_user_whom_messages_knows_with_capitals_is_found(there):
    box = there.fake.add_mailbox("zoe@corp.example", admin="Zoe@corp.example")
    (found,) = await there.messages.list_mailboxes("Zoe@corp.example")
    assert (found.mailbox_id, found.can_send) == (box.id, True)
    assert there.fake.look_ups == [{"user_email": "Zoe@corp.example"}]
    assert await there.messages.own_mailbox("Zoe@corp.example") == found


@pytest.mark.parametrize(
    ("role", "can_send"), [("viewer", False), ("editor", False), ("sender", True), ("admin", True)]
)
async def test_senders_and_admins_may_send(there, role, can_send):
    there.box.users[OWNER] = role
    (box,) = await there.messages.list_mailboxes(OWNER)
    assert box.can_send is can_send
    assert (await there.messages.own_mailbox("ADA@example.com") is not None) is can_send


async def test_the_own_mailbox_is_the_one_with_the_users_address(there):
    there.fake.mailboxes.clear()
    there.fake.add_mailbox("team@example.com", admin=OWNER)
    assert await there.messages.own_mailbox(OWNER) is None
    assert await there.messages.own_mailbox("unknown@example.com") is None


async def test_mailboxes_are_kept_for_a_minute(there, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(mailboxes_module, "time", clock)
    for _ in range(3):
        await there.messages.list_mailboxes(OWNER)
    assert len(there.fake.look_ups) == 1
    clock.now += 61
    await there.messages.list_mailboxes(OWNER)
    assert len(there.fake.look_ups) == 2


async def test_a_failure_is_not_kept_and_never_an_empty_list(there):
    there.fake.look_up_faults.extend([Fault(500), Fault(200)])  # the second is a page with status 200
    for _ in range(2):
        with pytest.raises(MessagesUnavailable):
            await there.messages.list_mailboxes(OWNER)
    assert len(await there.messages.list_mailboxes(OWNER)) == 1


async def test_a_mail_is_handed_over(there):
    message_id = await submit(there)
    (mail,) = there.fake.submitted
    assert mail.message_id == message_id
    assert (mail.mailbox_id, mail.recipients, mail.raw) == (there.box.id, ["bob@example.org"], MAIL)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda there: setattr(there.settings, "messages_api_key", SecretStr("wrong")),
            "check MESSAGES_API_KEY",
        ),
        (
            lambda there: setattr(there.settings, "messages_channel_id", there.box.id),
            "check MESSAGES_API_KEY",
        ),
        (lambda there: there.fake.scopes.clear(), "scopes mailboxes:read and messages:send"),
        (
            lambda there: setattr(there.settings, "messages_api_url", there.settings.messages_api_url + "/x"),
            "MESSAGES_API_URL",
        ),
    ],
    ids=["key", "channel", "scope", "address"],
)
async def test_a_wrong_setting_is_reported_with_its_fix(there, change, sentence):
    change(there)
    with pytest.raises(MessagesRefused) as refused:
        await there.messages.list_mailboxes(OWNER)
    assert sentence in refused.value.message
    assert "wrong" not in refused.value.message


async def test_a_channel_that_is_not_global_is_refused(there):
    there.fake.is_global = False
    with pytest.raises(MessagesRefused, match="global"):
        await there.messages.list_mailboxes(OWNER)
    with pytest.raises(MessagesRefused, match="does not cover the mailbox"):
        await submit(there)


async def test_a_lost_scope_is_the_operators_and_not_the_mails_fault(there):
    there.fake.scopes.discard("messages:send")
    with pytest.raises(MessagesRefused):
        await submit(there)


async def test_a_redirect_is_not_followed_with_the_key(there):
    there.fake.faults.append(Fault(301, {"Location": "https://example.com/"}))
    with pytest.raises(MessagesRefused, match="https address"):
        await submit(there)


async def test_429_says_how_long_to_wait(there):
    there.fake.faults.extend([Fault(429, {"Retry-After": "17"}), Fault(429)])
    with pytest.raises(MessagesThrottled) as stated:
        await submit(there)
    assert stated.value.retry_after == 17
    with pytest.raises(MessagesThrottled) as unstated:
        await submit(there)
    assert unstated.value.retry_after == 30


@pytest.mark.parametrize(("status", "may_be_taken"), [(500, True), (502, False), (503, False), (504, True)])
async def test_errors_with_html_bodies_are_outages(there, status, may_be_taken):
    there.fake.faults.append(Fault(status))
    with pytest.raises(MessagesUnavailable) as failed:
        await submit(there)
    assert failed.value.message == f"Messages answered {status}."
    assert failed.value.may_be_taken is may_be_taken


async def test_a_missing_response_may_be_a_mail_taken(there, monkeypatch):
    monkeypatch.setattr(client_module, "SUBMIT_TIMEOUT_SECONDS", 0.1)
    there.fake.faults.extend([Fault(take=True, drop=True), Fault(take=True, hang=0.3)])
    for _ in range(2):
        with pytest.raises(MessagesUnavailable) as failed:
            await submit(there)
        assert failed.value.may_be_taken
        assert failed.value.__cause__ is failed.value.__context__ is None
    assert len(there.fake.submitted) == 2


async def test_no_connection_is_no_mail_taken(there):
    there.settings.messages_api_url = "http://127.0.0.1:1"
    with pytest.raises(MessagesUnavailable) as failed:
        await submit(there)
    assert not failed.value.may_be_taken


@pytest.mark.parametrize(
    ("mail", "reason"),
    [
        (b"", "Empty body"),
        (b"Bcc: eve@example.org\r\n" + MAIL, "Bcc is not allowed"),
        (
            MAIL.replace(
                b"To: bob@example.org", b"To: " + b",\r\n ".join(b"g%d@example.org" % n for n in range(500))
            ),
            "Too many recipients",
        ),
    ],
    ids=["empty", "bcc", "501"],
)
async def test_a_bad_mail_is_refused_with_the_reason(there, mail, reason):
    with pytest.raises(MailRefused, match=reason):
        await submit(there, mail)


@pytest.mark.parametrize("status", [400, 404, 413])
async def test_a_page_of_its_web_server_is_not_about_the_mail(there, status):
    there.fake.faults.append(Fault(status))
    with pytest.raises(MessagesRefused):
        await submit(there)


async def test_another_mailboxs_from_is_a_mail_that_can_never_be_sent(there):
    with pytest.raises(MailRefused, match="From header does not match mailbox"):
        await submit(there, MAIL.replace(b"ada@example.com", b"eve@example.com"))


async def test_an_unknown_mailbox_is_a_mail_that_can_never_be_sent(there):
    with pytest.raises(MailRefused, match="does not know the mailbox"):
        await submit(there, mailbox_id="no-uuid")


async def test_nothing_is_asked_while_the_feature_is_off(there):
    there.settings.feature_messages_integration = False
    with pytest.raises(MessagesOff):
        await there.messages.list_mailboxes(OWNER)
    with pytest.raises(MessagesOff):
        await submit(there)
    assert there.fake.look_ups == []


async def test_nothing_is_kept_when_the_feature_goes_off(there):
    await there.messages.list_mailboxes(OWNER)
    there.settings.feature_messages_integration = False
    with pytest.raises(MessagesOff):
        await there.messages.list_mailboxes(OWNER)
