"""Random sequences of what happens to a project with join rules."""

from typing import Any

from hypothesis import strategies as st

from tests.flows.join_rules.model import Rule, Rules

_NAMES = ("Weekly sync", "PRIVATE: doctor", "Customer call", None)
_PEOPLE: tuple[tuple[str, ...], ...] = (
    (),
    ("ada@example.com", "bob@example.com"),
    ("ada@example.com", "eve@Example.COM"),
    ("ada@example.com", "guest@customer.test"),
    ("ada@example.com", "bob@example.com", "cy@example.com", "x@sub.example.com"),
)
_STATUSES = (None, "needs_action", "accepted", "tentative", "declined")
_VISIBILITIES = ("default", "public", "private", "confidential")

# Half hours from the full hour before the test. Events last an hour, so neighbours overlap.
_SOON = (6, 7, 8)
_LATER = (60, 61, 62, 200)
_PAST = (-9, -60)

when_parts = st.fixed_dictionaries(
    {},
    optional={
        "has_meeting_url": st.booleans(),
        "attendees_min": st.integers(0, 4),
        "attendees_max": st.integers(4, 6),
        "has_external_attendee": st.booleans(),
        "response_status_in": st.lists(
            st.sampled_from([one for one in _STATUSES if one]), min_size=1, max_size=3, unique=True
        ),
        "is_organizer": st.booleans(),
        "name_contains": st.lists(
            st.sampled_from(["sync", "private", "Call", "%", "_"]), min_size=1, max_size=2
        ),
        "is_all_day": st.booleans(),
        "visibility_in": st.lists(st.sampled_from(_VISIBILITIES), min_size=1, max_size=3, unique=True),
        "platforms": st.lists(
            st.sampled_from(["zoom", "google_meet", "webex"]), min_size=1, max_size=2, unique=True
        ),
    },
)
# Most rules ask for little, or few events would be joined.
whens: Any = st.one_of(
    st.just({}), st.just({"has_meeting_url": True}), st.just({"name_contains": ["sync"]}), when_parts
)


any_scope: Any = st.sampled_from(["event", "meeting"])


@st.composite
def rule_sets(draw: st.DrawFn, scopes: Any = any_scope) -> Rules:
    rules = []
    for number in range(draw(st.integers(0, 4))):
        join = draw(st.sampled_from([True, True, True, False]))
        name = f"{draw(st.sampled_from('AB'))}{number}"
        rules.append(Rule(name, draw(whens), join, {"bot_name": f"Bot {name}"} if join else None))
    return Rules(tuple(rules), draw(scopes))


_which = st.integers(0, 9)
_calendar = st.integers(0, 3)
_times = st.sampled_from([*_SOON, *_SOON, *_LATER, *_LATER, *_PAST])
_links = st.sampled_from([0, 0, 0, 1, 2, 3])
_fields = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(_NAMES[:3]),
        "attendees": st.sampled_from(_PEOPLE),
        "response_status": st.sampled_from(_STATUSES),
        "organizer": st.sampled_from(["ada@example.com", "BOB@example.com", None]),
        "visibility": st.sampled_from(_VISIBILITIES),
    },
)


def _step(name: str, *values: Any) -> Any:
    return st.tuples(st.just(name), *values)


def stories(rules: Any = None) -> Any:
    """Lists of steps: the name of a method of the test and its arguments."""
    rules = rules if rules is not None else rule_sets()
    steps = st.one_of(
        _step("add", _calendar, _times, _links, _fields),
        _step("add", _calendar, _times, _links, st.just({})),
        _step("move", _which, _times),
        _step("set_link", _which, _links),
        _step("set_fields", _which, _fields),
        _step("cancel", _which),
        _step("revive", _which),
        _step("put_rules", rules),
        _step("begin_put_rules", rules),
        _step("put_calendar_rules", _calendar, st.one_of(st.none(), rules)),
        _step("begin_put_calendar_rules", _calendar, st.one_of(st.none(), rules)),
        _step("set_policy", _which, st.sampled_from(["rules", "always", "never"])),
        _step("delete_bot", _which),
        _step("disconnect", _calendar),
        _step("reconnect", _calendar),
        _step("delete_calendar", _calendar),
        _step("claim"),
        _step("hand_over"),
        _step("apply", st.integers(1, 3)),
        _step("check"),
    )
    return st.tuples(
        rules,
        st.lists(_step("add", _calendar, _times, _links, _fields), min_size=2, max_size=6),
        st.lists(steps, min_size=3, max_size=25),
    ).map(lambda parts: [("put_rules", parts[0]), *parts[1], *parts[2]])
