"""busy_status, visibility, event_type and etag, as each provider's events say them."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.data import BusyStatus, EventType, Visibility
from app.events.derived import Derived, derived_of
from app.ical.components import parse_lines
from app.ical.components import split as split_components
from app.providers.google import fields as google
from app.providers.ics import events as ics
from app.providers.microsoft import fields as microsoft

# What no provider sends, and what none of them may fail over.
ODD = [None, "", " ", "whatever", 7, True, 1.5, ["free"], {"free": "free"}, "fr\x00ee", "\ud800", "x" * 9_000]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({}, Derived("busy", "default", "default", None)),
        ({"transparency": "opaque", "visibility": "default", "eventType": "default"}, Derived()),
        ({"transparency": "transparent"}, Derived("free")),
        ({"status": "confirmed"}, Derived("busy")),
        ({"status": "tentative"}, Derived("tentative")),
        ({"status": "tentative", "transparency": "transparent"}, Derived("free")),
        ({"eventType": "outOfOffice"}, Derived("out_of_office", event_type="out_of_office")),
        ({"eventType": "outOfOffice", "status": "tentative"}, Derived("out_of_office", event_type="out_of_office")),
        ({"eventType": "outOfOffice", "transparency": "transparent"}, Derived("free", event_type="out_of_office")),
        ({"eventType": "focusTime"}, Derived(event_type="focus_time")),
        ({"eventType": "birthday", "transparency": "transparent"}, Derived("free", event_type="birthday")),
        ({"eventType": "workingLocation", "transparency": "transparent"}, Derived("free", event_type="working_location")),
        ({"eventType": "workingLocation"}, Derived("busy", event_type="working_location")),
        ({"eventType": "fromGmail"}, Derived()),
        ({"visibility": "public"}, Derived(visibility="public")),
        ({"visibility": "private"}, Derived(visibility="private")),
        ({"visibility": "confidential"}, Derived(visibility="confidential")),
        ({"etag": '"3530000000000000"'}, Derived(etag='"3530000000000000"')),
    ],
)  # fmt: skip
def test_google(item: dict[str, Any], expected: Derived) -> None:
    assert google.read_derived(item) == expected
    event = google.parse_event({"id": "a", **item}, calendar_timezone="UTC")
    assert derived_of(event) == expected


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({}, Derived()),
        ({"showAs": "busy", "sensitivity": "normal"}, Derived()),
        ({"showAs": "free"}, Derived("free")),
        ({"showAs": "Free"}, Derived("free")),
        ({"showAs": "tentative"}, Derived("tentative")),
        ({"showAs": "oof"}, Derived("out_of_office")),
        ({"showAs": "OOF"}, Derived("out_of_office")),
        ({"showAs": "workingElsewhere"}, Derived("working_elsewhere")),
        ({"showAs": "workingelsewhere"}, Derived("working_elsewhere")),
        ({"showAs": "unknown"}, Derived()),
        ({"sensitivity": "personal"}, Derived()),
        ({"sensitivity": "private"}, Derived(visibility="private")),
        ({"sensitivity": "Confidential"}, Derived(visibility="confidential")),
        ({"@odata.etag": 'W/"a"', "changeKey": "a"}, Derived(etag='W/"a"')),
        ({"changeKey": "a"}, Derived(etag="a")),
    ],
)
def test_microsoft(item: dict[str, Any], expected: Derived) -> None:
    assert microsoft.read_derived(item) == expected
    assert derived_of(microsoft.parse_event({"id": "a", **item})) == expected


def read_vevent(*lines: str) -> Derived:
    text = "\n".join(["BEGIN:VCALENDAR", "BEGIN:VEVENT", "UID:a", *lines, "END:VEVENT", "END:VCALENDAR"])
    component = next(split_components(text.encode("utf-8", "replace")))
    return derived_of(ics.Reader().describe(component, "a"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], Derived()),
        (["TRANSP:OPAQUE", "CLASS:PUBLIC", "STATUS:CONFIRMED"], Derived(visibility="public")),
        (["TRANSP:TRANSPARENT"], Derived("free")),
        (["transp;x-a=1: Transparent "], Derived("free")),
        (["STATUS:TENTATIVE"], Derived("tentative")),
        (["STATUS:TENTATIVE", "TRANSP:TRANSPARENT"], Derived("free")),
        (["X-MICROSOFT-CDO-BUSYSTATUS:BUSY", "TRANSP:TRANSPARENT"], Derived("busy")),
        (["X-MICROSOFT-CDO-BUSYSTATUS:FREE", "TRANSP:OPAQUE"], Derived("free")),
        (["X-MICROSOFT-CDO-BUSYSTATUS:TENTATIVE", "STATUS:CONFIRMED"], Derived("tentative")),
        (["X-MICROSOFT-CDO-BUSYSTATUS:OOF"], Derived("out_of_office")),
        (["X-MICROSOFT-CDO-BUSYSTATUS:WORKINGELSEWHERE"], Derived("working_elsewhere")),
        (["X-MICROSOFT-CDO-BUSYSTATUS:SLEEPING", "TRANSP:TRANSPARENT"], Derived("free")),
        (["X-MICROSOFT-CDO-INTENDEDSTATUS:FREE"], Derived("busy")),
        (["CLASS:PRIVATE"], Derived(visibility="private")),
        (["CLASS:CONFIDENTIAL"], Derived(visibility="confidential")),
        (["CLASS:X-SECRET"], Derived(visibility="private")),
        (["CLASS;X-WORD=1:\\;garbled"], Derived(visibility="private")),
        (["CLASS:"], Derived()),
        (["CLASS:X-SECRET", "CLASS:PUBLIC"], Derived(visibility="private")),
        (["TRANSP:OPAQUE", "TRANSP:TRANSPARENT"], Derived()),
    ],
)
def test_feeds(lines: list[str], expected: Derived) -> None:
    assert read_vevent(*lines) == expected


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_unknown_words_and_other_types_are_the_default(value: Any) -> None:
    names = ("transparency", "status", "visibility", "eventType")
    assert google.read_derived(dict.fromkeys(names, value)) == Derived()
    assert microsoft.read_derived(dict.fromkeys(("showAs", "sensitivity"), value)) == Derived()


@pytest.mark.parametrize("value", [None, "", 7, ["a"], {"a": 1}, "a\x00", "\ud800", "x" * 1_025], ids=repr)
def test_an_etag_that_cannot_be_stored_as_it_is_is_none(value: Any) -> None:
    assert google.read_derived({"etag": value}).etag is None
    assert microsoft.read_derived({"@odata.etag": value, "changeKey": value}).etag is None


_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(
        ["transparent", "tentative", "private", "outOfOffice", "OOF", "Free", '"1"']
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
_ITEM = st.dictionaries(st.sampled_from([*google.DERIVED_FROM, *microsoft.DERIVED_FROM]), _VALUE)


@settings(max_examples=300, deadline=None)
@given(item=_ITEM, line=st.text(max_size=40))
def test_whatever_is_sent_the_fields_have_values_that_can_be_stored(item: dict[str, Any], line: str) -> None:
    first = {
        found.name: found for found in parse_lines(f"TRANSP:{line}\nCLASS;{line}".encode("utf-8", "replace"))
    }
    for derived in (google.read_derived(item), microsoft.read_derived(item), ics.read_derived(first)):
        assert derived.busy_status in get_args(BusyStatus)
        assert derived.visibility in get_args(Visibility)
        assert derived.event_type in get_args(EventType)
        if derived.etag is not None:
            assert "\x00" not in derived.etag
            derived.etag.encode()


def test_raw_that_lacks_lines_is_marked() -> None:
    def is_cut(length: int) -> bool:
        text = f"BEGIN:VCALENDAR\nBEGIN:VEVENT\nDESCRIPTION:{'x' * length}\nTRANSP:TRANSPARENT\nEND:VEVENT\nEND:VCALENDAR"
        event = ics.Reader().describe(next(split_components(text.encode())), "a")
        assert event.busy_status == "free"
        assert ("TRANSPARENT" in event.raw) != event.is_raw_cut
        return event.is_raw_cut

    assert [is_cut(100), is_cut(8_000)] == [False, True]
