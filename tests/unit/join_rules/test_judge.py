"""Each condition of a rule, and which rule decides."""

import pytest

from app.join_rules.judge import EventFacts, Participant, compile_rules, decide

OURS, THEIRS = Participant("bob@ours.example"), Participant("eve@other.example")
ROOM = Participant("room@resources.example", is_resource=True)
BOT = {"bot_name": "B"}


def event(**fields) -> EventFacts:
    values = {"meeting_url": "https://zoom.us/j/1", "meeting_platform": "zoom", "owner": "Ada@Ours.example"}
    return EventFacts(**{**values, **fields})


@pytest.mark.parametrize(
    ("when", "fields", "holds"),
    [
        ({}, {}, True),
        ({"has_meeting_url": True}, {}, True),
        ({"has_meeting_url": False}, {}, False),
        ({"has_meeting_url": False}, {"meeting_url": None}, True),
        ({"attendees_min": 2}, {"attendees": [OURS]}, False),
        ({"attendees_min": 2}, {"attendees": [OURS, ROOM]}, True),
        ({"attendees_max": 1}, {"attendees": [OURS]}, True),
        ({"attendees_max": 0}, {"attendees": [OURS]}, False),
        ({"has_external_attendee": True}, {"attendees": [OURS]}, False),
        ({"has_external_attendee": False}, {"attendees": [OURS, ROOM]}, True),
        ({"has_external_attendee": True}, {"attendees": [OURS, THEIRS]}, True),
        ({"has_external_attendee": True}, {"attendees": [OURS], "organizer": "x@other.example"}, True),
        ({"has_external_attendee": True}, {"attendees": [Participant("x@sub.ours.example")]}, True),
        ({"has_external_attendee": False}, {"attendees": [Participant(None)]}, True),
        ({"has_external_attendee": True}, {"owner": None, "attendees": [OURS, THEIRS]}, True),
        ({"has_external_attendee": True}, {"owner": None, "attendees": [THEIRS]}, False),
        ({"has_external_attendee": True}, {"owner": None, "attendees": [THEIRS], "organizer": "a@b.c", "is_own": True}, True),
        ({"response_status_in": ["accepted"]}, {"response_status": "accepted"}, True),
        ({"response_status_in": ["accepted"]}, {"response_status": None}, False),
        ({"is_organizer": True}, {"organizer": "ADA@ours.example"}, True),
        ({"is_organizer": True}, {"organizer": "bob@ours.example"}, False),
        ({"is_organizer": True}, {}, True),
        ({"is_organizer": False}, {"organizer": None, "attendees": [THEIRS]}, False),
        ({"is_organizer": True}, {"owner": None, "organizer": "x@y.z", "is_own": True}, True),
        ({"is_organizer": False}, {"owner": None, "organizer": "x@y.z"}, False),
        ({"name_contains": ["STRASSE", "x"]}, {"name": "Große Straße"}, True),
        ({"name_contains": ["x"]}, {"name": None}, False),
        ({"is_all_day": True}, {"is_all_day": True}, True),
        ({"is_all_day": True}, {}, False),
        ({"visibility_in": ["private"]}, {"visibility": "private"}, True),
        ({"visibility_in": ["private"]}, {}, False),
        ({"platforms": ["teams"]}, {}, False),
        ({"platforms": ["teams", "zoom"], "is_all_day": False}, {}, True),
        ({"platforms": ["teams", "zoom"], "is_all_day": True}, {}, False),
        ({"platforms": None}, {}, True),
    ],
)  # fmt: skip
def test_a_condition_holds(when, fields, holds) -> None:
    rules = compile_rules([{"name": "a", "when": when, "join": False}], "event")
    assert (decide(event(**fields), rules, "rules").rule is not None) is holds


def named(*rules, policy="rules", **fields):
    made = [
        {"name": str(n), "when": {}, "bot": BOT if one.get("join") else None, **one}
        for n, one in enumerate(rules)
    ]
    decision = decide(event(**fields), compile_rules(made, "event"), policy)
    assert (decision.bot is None) or decision.rule is not None
    return decision.rule.name if decision.bot is not None and decision.rule is not None else None


NO = {"join": False, "when": {"visibility_in": ["private"]}}
YES = {"join": True}
DECLINED = {"join": True, "when": {"response_status_in": ["declined"]}}


def test_the_first_rule_that_holds_decides() -> None:
    assert named(NO, YES) == "1"
    assert named(NO, YES, visibility="private") is None
    assert named(YES, NO, visibility="private") == "0"
    assert named() is None


def test_a_declined_event_is_joined_only_if_the_deciding_rule_names_it() -> None:
    assert named(YES, response_status="declined") is None
    assert named(DECLINED, YES, response_status="declined") == "0"
    assert named(YES, DECLINED, response_status="declined") is None


def test_a_policy_comes_before_the_rules() -> None:
    assert named(YES, policy="never") is None
    assert named(NO, {"join": True, "when": {"is_all_day": True}}, YES, policy="always") == "2"
    assert (
        named(NO, {"join": True, "when": {"is_all_day": True}}, policy="always", visibility="private") == "1"
    )
    assert named(YES, policy="always", response_status="declined") == "0"
    assert named(YES, policy="always", meeting_url=None) is None
    assert named(NO, policy="always") is None


def test_the_digest_of_a_bot_says_whether_anything_of_it_differs() -> None:
    def digest(**bot):
        (one,) = compile_rules([{"name": "a", "join": True, "bot": {**BOT, **bot}}], "event").rules
        assert one.bot is not None
        return one.bot.digest

    assert digest() == digest(metadata=None, x=None)
    assert digest(bot_settings={"x": 1}) == digest(x=1)
    assert len({digest(), digest(bot_name="C"), digest(metadata={"a": "b"}), digest(x=1), digest(x=2)}) == 5
