"""The OpenAPI document as validators and generators of clients read it, and the pages that show it."""

import json
import re

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from app.core.clock import utcnow
from app.webhooks import payloads
from app.webhooks.events import TRIGGERS, sample_body


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
    """A generator believes `default`: it sends what nobody gave, or demands the field."""
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


async def test_no_answer_is_declared_that_is_never_sent(document):
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
    }
    for trigger in TRIGGERS:
        body = sample_body(idempotency_key="k", trigger=trigger, now=utcnow())
        models[trigger].model_validate_json(body)


async def test_the_start_page_leads_to_the_documentation(api):
    answer = await api.get("/")
    assert (answer.status_code, answer.headers["location"]) == (302, "/docs")


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
