"""The OpenAPI document as validators and generators of clients read it, and the pages that show it."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel, ValidationError

from app.bots.schemas import BotUpdate
from app.calendars.schemas import LocalCalendarCreate
from app.core.clock import utcnow
from app.hosted.schemas import CalendarEventUpdate
from app.oauth.schemas import OAuthAppUpdate
from app.webhooks import openapi as payloads
from app.webhooks.payloads import TRIGGERS, sample_body
from app.webhooks.schemas import WebhookUpdate


@pytest.fixture
async def document(api):
    return (await api.get("/openapi.json")).json()


def _operations(document):
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


async def test_it_is_a_valid_document(document):
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


async def test_every_example_of_a_body_is_one(document):
    checked = 0
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", []):
            Draft202012Validator({**schema, "components": document["components"]}).validate(example)
            checked += 1
    assert checked > 5


async def test_no_body_has_a_default_that_generated_clients_would_send(document):
    """A generator believes `default`: it sends what the caller did not give, or demands the field."""
    bodies = {
        name
        for name in document["components"]["schemas"]
        if name.endswith(("Create", "Update", "Request", "Input"))
    }
    assert len(bodies) > 10
    for name in bodies:
        for field, schema in document["components"]["schemas"][name].get("properties", {}).items():
            assert "default" not in schema, f"{name}.{field}"
    assert "Default: `true`." in json.dumps(document["components"]["schemas"]["WebhookCreate"])


async def test_no_response_is_declared_that_is_never_sent(document):
    for name, operation in _operations(document):
        assert "422" not in operation["responses"], name
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_times_are_date_times(document):
    schemas = document["components"]["schemas"]
    for model, field in [
        ("CalendarRead", "created_at"),
        ("CalendarEventRead", "updated_at"),
        ("BotEntryRead", "created_at"),
        ("AttemptRead", "at"),
    ]:
        assert schemas[model]["properties"][field]["format"] == "date-time"
    for name, schema in schemas.items():
        for field, shape in schema.get("properties", {}).items():
            if field.endswith("_at"):
                assert "date-time" in json.dumps(shape), f"{name}.{field}"


async def test_only_operations_that_take_input_declare_a_response_for_bad_input(document):
    # They refuse for the object's state.
    by_state = {"DELETE /api/v1/bots/{bot_id}", "GET /api/v1/calendar_events/{event_id}.ics"}
    by_state.add("GET /api/v1/calendars/{calendar_id}/remote_calendars")
    with_400 = {name for name, operation in _operations(document) if "400" in operation["responses"]}
    takes_input = {
        name
        for name, operation in _operations(document)
        if "requestBody" in operation or any(one["in"] != "path" for one in operation.get("parameters", []))
    }
    assert by_state <= with_400
    never_refuse = {"POST /notifications/google", "POST /api/v1/rsvp/inbound"}
    assert takes_input - with_400 <= never_refuse
    assert with_400 - takes_input == by_state


async def test_nothing_that_can_only_be_left_out_may_be_null(document):
    for name, operation in _operations(document):
        for parameter in operation.get("parameters", []):
            assert "null" not in json.dumps(parameter["schema"]), f"{name}: {parameter['name']}"
    for model, field in [
        ("BotUpdate", "join_at"),
        ("CalendarUpdate", "timezone"),
        ("CalendarEventUpdate", "start_time"),
    ]:
        assert "null" not in json.dumps(document["components"]["schemas"][model]["properties"][field])


# Values of which the schema knows as much as the code.
_CHECKED: list[tuple[type[BaseModel], str, list[Any], list[Any]]] = [
    (
        LocalCalendarCreate,
        "owner_email",
        ["ada@example.com", "a.b+c@x-y.example.org", "o'neil@example.xn--p1ai"],
        [
            "",
            "ada",
            "ada@localhost",
            "a b@example.com",
            "ada@example.c0m",
            "@example.com",
        ],
    ),
    (
        LocalCalendarCreate,
        "name",
        ["Lectures", " a ", "日本", "x" * 300],
        ["", "  ", "a\nb", "a\u2028b", "\x7f", "x" * 301],
    ),
    (
        LocalCalendarCreate,
        "locale",
        ["fr", "fr-CA", "zh_Hant_TW"],
        ["", "f", "french", "fr-", "fr CA"],
    ),
    (LocalCalendarCreate, "timezone", ["UTC", "Europe/Paris", "Etc/GMT+3"], ["", "+02:00", "Europe Paris"]),
    (LocalCalendarCreate, "metadata", [{"a": "b"}, None], [{}, {"a": 1}, "a", []]),
    (LocalCalendarCreate, "deduplication_key", ["user-42", " a ", None], ["", " ", True, "x" * 1025]),
    (
        CalendarEventUpdate,
        "meeting_url",
        ["https://zoom.us/j/1?pwd=a", "HTTP://example.com", None],
        ["", "zoom.us/j/1", "javascript:alert(1)", "https://", "https://a b", "https://a/<b>", "https:///x"],
    ),
    (CalendarEventUpdate, "location", ["Room 1\nleft\tdoor", "", None], ["\x07", "a\x85b"]),
    (
        CalendarEventUpdate,
        "recurrence",
        [["RRULE:FREQ=DAILY"], ["rrule:FREQ=WEEKLY;COUNT=2"], [], None],
        [["FREQ=DAILY"], ["RRULE:FREQ=DAILY", "RRULE:FREQ=DAILY"], "RRULE:FREQ=DAILY", [""]],
    ),
    (
        BotUpdate,
        "meeting_url",
        ["https://zoom.us/j/1", "http://example.com"],
        ["zoom.us", "https://", "ftp://a", None],
    ),
    (
        OAuthAppUpdate,
        "redirect_uris",
        [["https://example.com/a?b=c"]],
        [[], ["/a"], ["https://example.com/#a"], ["https://"], ["https://a\\b"], "https://example.com"],
    ),
    (WebhookUpdate, "triggers", [list(TRIGGERS)], [[], ["calendar.deleted"], "bot.state_change"]),
]


@pytest.mark.parametrize(
    ("model", "field", "good", "bad"), _CHECKED, ids=[f"{row[0].__name__}.{row[1]}" for row in _CHECKED]
)
async def test_the_document_says_what_is_enforced(
    *, document, model: type[BaseModel], field: str, good: list[Any], bad: list[Any]
):
    shape = document["components"]["schemas"][model.__name__]["properties"][field]
    validator = Draft202012Validator({**shape, "components": document["components"]})
    for value in [*good, *bad]:
        faults = _faults(model, field, value)
        assert (not faults) == (value in good), f"{value!r}: {faults}"
        assert validator.is_valid(value) == (value in good), f"{value!r} by the document"


def _faults(model: type[BaseModel], field: str, value: Any) -> list[Any]:
    """What is wrong with the field, whatever else the body lacks."""
    try:
        model.model_validate({field: value})
    except ValidationError as err:
        return [fault["msg"] for fault in err.errors() if fault["loc"][0] == field]
    return []


async def test_every_operation_says_who_may_call_it_and_has_a_tag_that_is_described(document):
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    for name, operation in _operations(document):
        assert operation["tags"], name
        assert set(operation["tags"]) <= described, name
        public = not name.split()[1].startswith("/api/")
        assert operation["security"] == ([] if public else [{"Bearer": []}, {"ApiKey": []}]) or name.endswith(
            "/rsvp/inbound"
        ), name


async def test_every_trigger_is_described_as_what_is_really_sent(document):
    assert set(document["webhooks"]) == set(TRIGGERS)
    models: dict[str, type[BaseModel]] = {
        "calendar.events_update": payloads.EventsUpdateDelivery,
        "calendar.state_change": payloads.CalendarStateDelivery,
        "bot.state_change": payloads.BotStateDelivery,
        "event.rsvp_update": payloads.RsvpUpdateDelivery,
        "event.created": payloads.EventCreatedDelivery,
        "event.updated": payloads.EventUpdatedDelivery,
        "event.deleted": payloads.EventDeletedDelivery,
        "event.starting_soon": payloads.StartingSoonDelivery,
    }
    for trigger in TRIGGERS:
        body = sample_body(idempotency_key="k", trigger=trigger, now=utcnow())
        models[trigger].model_validate_json(body)


async def test_the_start_page_leads_to_the_documentation(api):
    response = await api.get("/")
    assert (response.status_code, response.headers["location"]) == (302, "/docs")


async def test_the_documentation_loads_nothing_from_other_servers(api):
    page = await api.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith(("/", "data:")), address
        if address.startswith("/"):
            assert (await api.get(address)).status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
