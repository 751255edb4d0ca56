"""Any scheduled bots that are there become the same ones, and a second plan changes nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.join_rules.judge import Rule, RuleBot
from app.join_rules.plan import Bot, Deleted, Judged, plan

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LINKS = ("https://zoom.us/j/5551112222", "https://zoom.us/j/5553334444")
RULE_BOT = RuleBot("Notetaker", None, {}, "digest")
RULE = Rule("all", (), joins=True, joins_declined=False, bot=RULE_BOT)

_half_hours: Any = st.integers(1, 8)
_lengths: Any = st.sampled_from([None, 0, 1, 2, 4, 100])


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Judged], list[Bot], list[Deleted]]:
    """Events ahead, with any bots and deletions."""
    events = []
    for number in range(draw(st.integers(1, 7))):
        start = NOW + draw(_half_hours) * timedelta(minutes=30)
        length = draw(_lengths)
        events.append(
            Judged(
                id=f"evt_{number}",
                start=start,
                end=None if length is None else start + length * timedelta(minutes=30),
                meeting_url=draw(st.sampled_from(LINKS)),
                rule=RULE,
                bot=RULE_BOT if draw(st.integers(0, 4)) else None,
                is_shared=draw(st.integers(0, 4)) > 0,
                is_marked=draw(st.integers(0, 6)) == 0,
                is_written=draw(st.booleans()),
            )
        )
    bots = [
        Bot(
            id=f"bot_{number}",
            event_id=draw(st.sampled_from(events)).id,
            phase=draw(st.sampled_from(["waiting", "waiting", "done"])),
            join_at=NOW + draw(_half_hours) * timedelta(minutes=30),
            meeting_url=draw(st.sampled_from(LINKS)),
            rule="all",
            digest="digest",
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    deleted = [
        Deleted(draw(st.sampled_from(LINKS)), NOW + draw(_half_hours) * timedelta(minutes=30))
        for _ in range(draw(st.sampled_from([0, 0, 1])))
    ]
    return events, bots, deleted


def applied(
    events: Sequence[Judged], bots: Sequence[Bot], deleted: Sequence[Deleted]
) -> tuple[list[Bot], bool]:
    """The bots after a plan was carried out, and whether any was made or deleted."""
    result = plan(events, bots, deleted, NOW)
    removed = {bot.id for bot in result.delete}
    kept = {bot.id: event for bot, event in result.keep}
    assert not removed & kept.keys()
    assert len(kept) == len(result.keep), "a bot is kept once"
    after = []
    for bot in bots:
        if bot.phase != "waiting":
            after.append(bot)
        elif bot.id in kept:
            after.append(_bot(bot.id, kept[bot.id]))
        else:
            assert bot.id in removed, "a bot that waits is kept or deleted"
    after += [_bot(f"bot_of_{event.id}", event) for event in result.make]
    return after, bool(result.make or result.delete)


def _bot(bot_id: str, event: Judged) -> Bot:
    return Bot(
        id=bot_id,
        event_id=event.id,
        phase="waiting",
        join_at=event.start,
        meeting_url=event.meeting_url,
        rule="all",
        digest="digest",
    )


def waiting(bots: Sequence[Bot]) -> list[str]:
    return sorted(bot.event_id for bot in bots if bot.phase == "waiting")


@settings(max_examples=500, deadline=None)
@given(situation=situations())
def test_a_plan_settles(situation: tuple[list[Judged], list[Bot], list[Deleted]]) -> None:
    events, bots, deleted = situation
    once, _ = applied(events, bots, deleted)
    twice, has_changes = applied(events, once, deleted)
    assert not has_changes
    assert waiting(twice) == waiting(once)
    assert {(bot.id, bot.event_id) for bot in twice} == {(bot.id, bot.event_id) for bot in once}


@settings(max_examples=500, deadline=None)
@given(situation=situations())
def test_a_plan_does_not_depend_on_the_bots_that_wait(
    situation: tuple[list[Judged], list[Bot], list[Deleted]],
) -> None:
    events, bots, deleted = situation
    after, _ = applied(events, bots, deleted)
    from_nothing, _ = applied(
        list(reversed(events)), [bot for bot in bots if bot.phase != "waiting"], deleted
    )
    assert waiting(after) == waiting(from_nothing)


@settings(max_examples=500, deadline=None)
@given(situation=situations())
def test_a_plan_has_one_bot_for_a_meeting(situation: tuple[list[Judged], list[Bot], list[Deleted]]) -> None:
    events, bots, deleted = situation
    after, _ = applied(events, bots, deleted)
    by_id = {event.id: event for event in events}
    scheduled = [by_id[bot.event_id] for bot in after if bot.phase == "waiting"]
    assert len({event.id for event in scheduled}) == len(scheduled)
    for number, event in enumerate(scheduled):
        assert event.bot is not None
        assert not event.is_marked
        for other in scheduled[:number]:
            if event.is_shared and other.is_shared and event.meeting_url == other.meeting_url:
                assert not event.overlaps(other)
