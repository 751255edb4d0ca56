"""What the service decides about an event is what the model decides, for any rules and events."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.join_rules.judge import EventFacts, Participant, compile_rules, decide
from tests.flows.join_rules.model import Model, ModelCalendar, ModelEvent, Rule, Rules
from tests.flows.join_rules.stories import rule_sets

OWNER = "ada@example.com"
_ADDRESSES = (OWNER, "ADA@EXAMPLE.COM", "bob@example.com", "eve@sub.example.com", "guest@customer.test")

events: Any = st.builds(
    ModelEvent,
    calendar=st.just("cal"),
    name=st.sampled_from([None, "", "Weekly sync", "CALL: Customer", "50 % off", "a_b", "PRIVATE"]),
    meeting_url=st.sampled_from(["https://zoom.us/j/5551112222", "https://meet.google.com/abc-defg-hij"]),
    meeting_platform=st.sampled_from(["zoom", "google_meet", "webex"]),
    attendees=st.lists(st.sampled_from(_ADDRESSES), max_size=6).map(tuple),
    organizer=st.sampled_from(_ADDRESSES),
    response_status=st.sampled_from([None, "needs_action", "accepted", "tentative", "declined"]),
    visibility=st.sampled_from(["default", "public", "private", "confidential"]),
    is_all_day=st.booleans(),
    policy=st.sampled_from(["rules", "rules", "always", "never"]),
)

_DECLINED = ModelEvent(
    "cal",
    name="Weekly sync",
    meeting_url="x",
    meeting_platform="zoom",
    response_status="declined",
    organizer=OWNER,
)


def bot(name: str) -> dict[str, str]:
    return {"bot_name": name}


@settings(max_examples=500, deadline=None)
@given(rules=rule_sets(), event=events)
@example(
    rules=Rules(
        (Rule("all", {}, bot=bot("a")), Rule("declined", {"response_status_in": ["declined"]}, bot=bot("b")))
    ),
    event=_DECLINED,
)
@example(
    rules=Rules((Rule("declined", {"response_status_in": ["declined"]}, bot=bot("b")),)), event=_DECLINED
)
def test_one_event_is_judged_as_by_the_model(rules: Rules, event: ModelEvent) -> None:
    model = Model(frozenset({"zoom"}), rules, {"cal": ModelCalendar(OWNER)}, {"event": event})
    wanted = model.judge(event)
    compiled = compile_rules([rule.as_json() for rule in rules.rules], rules.scope)
    facts = EventFacts(
        name=event.name,
        is_all_day=event.is_all_day,
        visibility=event.visibility,
        response_status=event.response_status,
        meeting_url=event.meeting_url,
        meeting_platform=event.meeting_platform,
        attendees=[Participant(address) for address in event.attendees],
        organizer=event.organizer,
        owner=OWNER,
    )
    decided = decide(facts, compiled, event.policy)
    bot_name = decided.bot.bot_name if decided.bot is not None else None
    assert bot_name == (wanted.bot["bot_name"] if wanted.bot is not None else None)
    if wanted.bot is not None:
        assert decided.rule is not None
        assert decided.rule.name == wanted.rule
