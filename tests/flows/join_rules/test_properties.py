"""Bots are a function of the rules, the events and what people and bots did, whatever the order of changes."""

import os
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings, strategies

from app.core.clock import utcnow
from tests.flows.join_rules.conftest import NewProject
from tests.flows.join_rules.model import Rules
from tests.flows.join_rules.played import Played
from tests.flows.join_rules.stories import rule_sets, stories

# More stories than usual: JOIN_RULE_STORIES=1000.
STORIES = int(os.environ.get("JOIN_RULE_STORIES", "0"))

thorough = settings(
    max_examples=STORIES or 12,
    derandomize=not STORIES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
    phases=[Phase.explicit, Phase.generate, Phase.shrink] if STORIES else [Phase.explicit, Phase.generate],
    print_blob=True,
)


async def play(played: Played, story: list[tuple[Any, ...]], *, is_checked: bool = True) -> None:
    for step, *arguments in story:
        if step == "check":
            await settle(played)
            if is_checked:
                await played.check()
        else:
            await getattr(played, step)(*arguments)
    await settle(played)


async def settle(played: Played) -> None:
    """What workers do when they have time."""
    await played.hand_over()
    await played.apply_all()


@thorough
@given(story=stories())
async def test_bots_are_what_the_rules_want(new_project: NewProject, story: list[tuple[Any, ...]]) -> None:
    async with new_project() as played:
        await play(played, story)
        await played.check()


@thorough
@given(story=stories(rule_sets(strategies.just("meeting"))))
async def test_a_meeting_never_has_two_bots(new_project: NewProject, story: list[tuple[Any, ...]]) -> None:
    """Every set of rules says so, so it holds after each step and not only when the rules are applied."""
    async with new_project() as played:
        for step, *arguments in story:
            if step == "check":
                await settle(played)
                await played.check()
            else:
                await getattr(played, step)(*arguments)
            await played.check_meetings()
        await settle(played)
        await played.check()


@thorough
@given(story=stories(), rules=rule_sets())
async def test_a_preview_is_what_the_change_does(
    new_project: NewProject, story: list[tuple[Any, ...]], rules: Rules
) -> None:
    async with new_project() as played:
        await play(played, story, is_checked=False)
        before = {bot.id: bot for bot in await played.scheduled()}
        shown = await played.preview(rules)
        assert {bot.id for bot in await played.scheduled()} == set(before), "a preview changes nothing"
        await played.put_rules(rules)
        await settle(played)
        after = {bot.id: bot for bot in await played.scheduled()}
        made = {
            bot.calendar_event_id: bot.bot_name.removeprefix("Bot ")
            for bot_id, bot in after.items()
            if bot_id not in before
        }
        removed = {bot_id: bot.calendar_event_id for bot_id, bot in before.items() if bot_id not in after}
        assert {one["calendar_event_id"]: one["rule"] for one in shown["make"]} == made
        assert {one["bot_id"]: one["calendar_event_id"] for one in shown["remove"]} == removed
        assert len(shown["make"]) == len(made)
        assert len(shown["remove"]) == len(removed)
        names = {event_id: name for name, event_id in played.ids.items()}
        for one in shown["remove"]:
            event = played.model.events[names[one["calendar_event_id"]]]
            if event.policy == "rules":
                # Where no rule decides, it is the one that made the bot.
                made_by = before[one["bot_id"]].bot_name.removeprefix("Bot ")
                assert one["rule"] == (played.model.judge(event).rule or made_by)
        assert not played.model.faults(await played.as_wanted(), utcnow())
