"""Signatures in both schemes, and the canonical bytes that they cover."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from app.core.clock import utcnow
from app.settings import Settings
from app.webhooks.merge import (
    MOST_EVENTS,
    MOST_EVENTS_BYTES,
    build_event_entries,
    merge_changes,
    with_events,
)
from app.webhooks.payloads import (
    TRIGGERS,
    BotFacts,
    CalendarFacts,
    ChangedEvent,
    build_body,
    canonical_json,
    sample_body,
)
from app.webhooks.signing import body_signature, new_secret, signature_headers
from app.webhooks.targets import url_fault

SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.mark.parametrize(
    ("secret", "message_id", "timestamp", "body", "signature"),
    [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
            '{"test": 2432232314}',
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            f"whsec_{SECRET}",
            "msg_0001",
            1767323045,
            '{"type":"calendar.events_update","timestamp":"2026-01-02T03:04:05Z","data":{"id":"cal_1","title":"Réunion"}}',
            "v1,VuBngnNaDd0Xa7xUe1NFbgsENLDd4x66ydTmk6bJAoA=",
        ),
    ],
)
def test_standard_webhooks_vectors(secret, message_id, timestamp, body, signature) -> None:
    at = datetime.fromtimestamp(timestamp, UTC)
    headers = signature_headers([secret], message_id=message_id, attempted_at=at, body=body.encode())
    assert headers["webhook-signature"] == signature
    assert headers["webhook-id"] == message_id
    assert headers["webhook-timestamp"] == str(timestamp)


def test_attendee_vector() -> None:
    wire = (
        '{"trigger": "calendar.events_update", "calendar_id": "cal_1", "idempotency_key": '
        '"00000000-0000-4000-8000-000000000001", "calendar_metadata": null, "calendar_deduplication_key": null, '
        '"data": {"state": "connected", "title": "R\\u00e9union", "n": 1}}'
    )
    body = canonical_json(json.loads(wire))
    assert body.decode() == (
        '{"calendar_deduplication_key":null,"calendar_id":"cal_1","calendar_metadata":null,"data":{"n":1,'
        '"state":"connected","title":"Réunion"},"idempotency_key":"00000000-0000-4000-8000-000000000001",'
        '"trigger":"calendar.events_update"}'
    )
    assert body_signature(SECRET, body) == "SjjKUbh+0DDWUBWVcJTUboJU/xdb3VtzI3zyCAA7E+w="


def test_with_two_secrets_either_verifies_and_the_attendee_header_is_by_the_first() -> None:
    current, old, other = new_secret(), new_secret(), new_secret()
    body = b'{"a":1}'
    headers = signature_headers([current, old], message_id="m", attempted_at=utcnow(), body=body)
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (current, old):
        Webhook(secret).verify(body, headers)
        Webhook(f"whsec_{secret}").verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(body, headers)
    assert headers["X-Webhook-Signature"] == body_signature(current, body) != body_signature(old, body)


def test_secrets_are_32_random_bytes() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(base64.b64decode(secret, validate=True)) for secret in secrets} == {32}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_is_what_a_python_verifier_reserialises(value) -> None:
    body = canonical_json(value)
    again = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert again.encode() == body


def test_canonical_json_has_strings_integers_booleans_and_null_only() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    value = {
        "half": 0.5,
        "whole": 2.0,
        "nan": float("nan"),
        "large": 2**60,
        "at": at,
        "text": "a\ud800b",
        1: (True, None),
    }
    assert json.loads(canonical_json(value)) == {
        "half": "0.5",
        "whole": 2,
        "nan": "nan",
        "large": str(2**60),
        "at": "2026-01-02T03:04:05.000000Z",
        "text": "a?b",
        "1": [True, None],
    }


def test_a_body_says_what_it_is_about() -> None:
    calendar = CalendarFacts("cal_1", deduplication_key="k", metadata={"user": "7"})
    body = build_body(
        idempotency_key="i", trigger="calendar.state_change", calendar=calendar, data={"state": "x"}
    )
    assert json.loads(body) == {
        "idempotency_key": "i",
        "calendar_id": "cal_1",
        "calendar_deduplication_key": "k",
        "calendar_metadata": {"user": "7"},
        "trigger": "calendar.state_change",
        "data": {"state": "x"},
    }
    about_a_bot = json.loads(
        build_body(
            idempotency_key="i",
            trigger="bot.state_change",
            calendar=None,
            data={},
            bot=BotFacts("bot_1", metadata={"a": "b"}),
            calendar_event_id="evt_1",
        )
    )
    assert about_a_bot["calendar_id"] is None
    assert about_a_bot["bot_id"] == "bot_1"
    assert about_a_bot["bot_metadata"] == {"a": "b"}
    assert about_a_bot["calendar_event_id"] == "evt_1"


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_every_trigger_has_a_sample_that_is_marked_as_a_test(trigger) -> None:
    sample = json.loads(sample_body(idempotency_key="i", trigger=trigger, now=utcnow()))
    assert sample["trigger"] == trigger
    assert sample["data"]["test"] is True


def changed(number: int, text: str = "") -> ChangedEvent:
    return ChangedEvent(
        id=f"evt_{number}",
        change="updated",
        event={"id": f"evt_{number}", "name": "new" + text},
        changed_fields={"name": ("old", "new" + text)},
    )


def test_changed_events_show_old_and_new_values() -> None:
    data = with_events(
        {"changes": {"created": 0, "updated": 1, "deleted": 0}}, build_event_entries([changed(1)])
    )
    assert data["events"] == [
        {
            "id": "evt_1",
            "name": "new",
            "change": "updated",
            "changed_fields": {"name": {"old": "old", "new": "new"}},
        }
    ]
    assert data["truncated"] is False


def test_more_than_fifty_changed_events_are_truncated() -> None:
    data = with_events({"changes": {"updated": 51}}, build_event_entries([changed(n) for n in range(51)]))
    assert len(data["events"]) == MOST_EVENTS
    assert data["truncated"] is True


def test_changed_events_stay_below_their_size_and_a_large_one_does_not_hide_the_rest() -> None:
    entries = build_event_entries([changed(n, "é" * (9000 if n == 0 else 400)) for n in range(30)])
    data = with_events({"changes": {"updated": 30}}, entries)
    assert len(canonical_json(data["events"])) <= MOST_EVENTS_BYTES
    assert [entry["id"] for entry in data["events"]][:2] == ["evt_1", "evt_2"]
    assert len(data["events"]) > 5
    assert data["truncated"] is True


def test_events_that_the_caller_left_out_count_as_truncated() -> None:
    assert with_events({"changes": {"created": 2}}, build_event_entries([changed(1)]))["truncated"] is True


def test_merged_data_says_what_every_message_said() -> None:
    def data(state: str, created: int, minute: int) -> dict:
        after = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
        changes = {"created": created, "updated": 1, "deleted": 0}
        return {"state": state, "changes": changes, "updated_after": after.isoformat()}

    merged = merge_changes([data("disconnected", 2, 30), data("connected", 3, 10)], data("connected", 4, 50))
    assert merged == {
        "state": "connected",
        "changes": {"created": 9, "updated": 3, "deleted": 0},
        "updated_after": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=10)).isoformat(),
    }


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "example.com/hook",
        "https://",
        "https:///path",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://localhost/",
        "https://hooks.localhost/",
        "https://127.0.0.1/",
        "https://10.0.0.8/",
        "https://169.254.169.254/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/\n",
        "https://xn--a/",
        "https://[::1/",
        "javascript:alert(1)",
    ],
)
def test_urls_that_no_webhook_may_have(url: str, clean_environment) -> None:
    assert url_fault(url, Settings()) is not None


@pytest.mark.parametrize(
    "url",
    ["https://example.com", "https://example.com:8443/a?b=c", "https://münchen.de/ü", "https://1.1.1.1/"],
)
def test_public_https_urls_are_fine(url: str, clean_environment) -> None:
    assert url_fault(url, Settings()) is None


def test_development_and_named_hosts_may_be_private_and_http(clean_environment) -> None:
    development = Settings(allow_private_network_targets=True)
    assert url_fault("http://127.0.0.1:9000/", development) is None
    assert url_fault("ftp://127.0.0.1:9000/", development) is not None
    named = Settings(webhook_allowed_hosts="hooks.internal,127.0.0.1")
    assert url_fault("http://hooks.internal/", named) is None
    assert url_fault("http://127.0.0.1:80/", named) is None
    assert url_fault("http://127.0.0.2:80/", named) is not None
    assert url_fault("https://user:pw@hooks.internal/", named) is not None
