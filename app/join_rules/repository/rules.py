"""SQL of join rules: the rules, the policies of events, the runs, and the reads that judging needs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ARRAY, Row, Text, bindparam, select, text
from sqlalchemy.dialects.postgresql import insert

from app.core.db import AnySession, Session
from app.models import Calendar, CalendarEvent, EventBotPolicy, JoinRules
from app.models.join_rule import BotScope, Policy
from app.webhooks.payloads import CalendarFacts


@dataclass(frozen=True, slots=True)
class StoredRules:
    """The rules of a project or calendar, as they are stored."""

    target: str
    rules: list[dict[str, Any]]
    bot_scope: BotScope


_RULES = text(
    """
    SELECT r.target, r.rules::text AS rules, r.bot_scope,
           EXISTS (SELECT FROM join_rules m WHERE m.project_id = r.project_id AND m.bot_scope = 'meeting') AS has_meeting
    FROM join_rules r WHERE r.target = ANY(:targets)
    """
).bindparams(bindparam("targets", type_=ARRAY(Text())))


async def load_rules(session: AnySession, targets: Collection[str]) -> tuple[list[StoredRules], bool]:
    """Return the rules of projects and calendars, and whether any of the project has scope "meeting"."""
    rows = (await session.execute(_RULES, {"targets": sorted(targets)})).all()
    rules = [StoredRules(row.target, orjson.loads(row.rules), row.bot_scope) for row in rows]
    return rules, any(row.has_meeting for row in rows)


_ALL_RULES = text(
    "SELECT target, rules::text AS rules, bot_scope FROM join_rules WHERE project_id = :project_id"
)


async def load_all_rules(session: AnySession, project_id: str) -> list[StoredRules]:
    """Return the rules of a project and of all its calendars."""
    rows = await session.execute(_ALL_RULES, {"project_id": project_id})
    return [StoredRules(row.target, orjson.loads(row.rules), row.bot_scope) for row in rows]


async def save_rules(
    session: Session, project_id: str, calendar_id: str | None, rules: list[dict[str, Any]], bot_scope: str
) -> None:
    """Replace the rules of a project, or of a calendar."""
    values = {"rules": rules, "bot_scope": bot_scope}
    statement = insert(JoinRules).values(
        target=calendar_id or project_id, project_id=project_id, calendar_id=calendar_id, **values
    )
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[JoinRules.target], set_={**values, "updated_at": text("clock_timestamp()")}
        )
    )


_DELETE_RULES = text("DELETE FROM join_rules WHERE target = :calendar_id RETURNING target")


async def delete_rules(session: Session, calendar_id: str) -> bool:
    """Delete a calendar's own rules; returns whether there were any."""
    return await session.scalar(_DELETE_RULES, {"calendar_id": calendar_id}) is not None


async def has_calendar(session: AnySession, project_id: str, calendar_id: str) -> bool:
    found = await session.scalar(
        select(Calendar.id).where(Calendar.project_id == project_id, Calendar.id == calendar_id)
    )
    return found is not None


async def find_calendar_of(session: AnySession, project_id: str, event_id: str) -> str | None:
    """Return the id of an event's calendar."""
    found: str | None = await session.scalar(
        select(CalendarEvent.calendar_id)
        .join(Calendar, Calendar.id == CalendarEvent.calendar_id)
        .where(CalendarEvent.project_id == project_id, CalendarEvent.id == event_id)
    )
    return found


_LOCK_CALENDAR = text("SELECT id FROM calendars WHERE id = :calendar_id FOR NO KEY UPDATE")

_SHARE_CALENDARS = text(
    "SELECT id FROM calendars WHERE id = ANY(:calendar_ids) ORDER BY id FOR SHARE SKIP LOCKED"
).bindparams(bindparam("calendar_ids", type_=ARRAY(Text())))

_OF_PROJECT = text("SELECT id FROM calendars WHERE project_id = :project_id")


async def find_calendars(session: AnySession, project_id: str) -> set[str]:
    """Return the ids of a project's calendars."""
    return set(await session.scalars(_OF_PROJECT, {"project_id": project_id}))


async def find_unlocked(session: Session, calendar_ids: Collection[str]) -> set[str]:
    """Return those of these calendars whose events no other transaction writes."""
    return set(await session.scalars(_SHARE_CALENDARS, {"calendar_ids": sorted(calendar_ids)}))


_LOCK_CALENDARS = text(
    "SELECT id FROM calendars WHERE id = ANY(:calendar_ids) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED"
).bindparams(bindparam("calendar_ids", type_=ARRAY(Text())))


async def lock_calendar(session: Session, calendar_id: str) -> bool:
    """Lock a calendar's row; False if there is none."""
    return await session.scalar(_LOCK_CALENDAR, {"calendar_id": calendar_id}) is not None


async def lock_calendars(session: Session, calendar_ids: Collection[str]) -> list[str]:
    """Lock the rows of calendars that no other transaction has locked; returns their ids."""
    return list(await session.scalars(_LOCK_CALENDARS, {"calendar_ids": sorted(calendar_ids)}))


# Two keys: app/events/visibility.py has the locks with one. They wait for as long as another writer of the project needs
# to end: longer than for a row.
_MEETINGS = 1785687410
_RULES_LOCK = 1785687411
_LOCK_PROJECT = text(
    """
    SELECT current_setting('lock_timeout'), set_config('lock_timeout', '20s', true),
           pg_advisory_xact_lock(:lock, hashtext(:project_id))
    """
)
_SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :value, true)")


async def _lock_project(session: Session, lock: int, project_id: str) -> None:
    before = await session.scalar(_LOCK_PROJECT, {"lock": lock, "project_id": project_id})
    await session.execute(_SET_LOCK_TIMEOUT, {"value": before})


async def lock_meetings(session: Session, project_id: str) -> None:
    """Be the only transaction that decides about bots that a project's calendars share."""
    await _lock_project(session, _MEETINGS, project_id)


async def lock_rules(session: Session, project_id: str) -> None:
    """Be the only transaction that changes a project's rules, or judges its events by links."""
    await _lock_project(session, _RULES_LOCK, project_id)


_TRY_LOCK_RULES = text(f"SELECT pg_try_advisory_xact_lock({_RULES_LOCK}, hashtext(:project_id))")


async def try_lock_rules(session: Session, project_id: str) -> bool:
    """Take the lock of `lock_rules`, unless another transaction has it."""
    return bool(await session.scalar(_TRY_LOCK_RULES, {"project_id": project_id}))


EVENT_COLUMNS = """
    e.id, e.calendar_id, e.start_time, e.end_time, e.is_all_day, coalesce(e.visibility, 'default') AS visibility,
    e.response_status, e.meeting_url, e.meeting_platform, e.name,
    CASE WHEN :asks_people THEN e.attendees::text END AS attendees,
    CASE WHEN :asks_people THEN e.organizer::text END AS organizer,
    c.owner_email,
    CASE WHEN NOT :asks_people OR c.owner_email IS NOT NULL THEN NULL
         WHEN c.platform = 'google' THEN e.raw #>> '{organizer,self}'
         WHEN c.platform = 'microsoft' THEN e.raw ->> 'isOrganizer' END AS is_own,
    coalesce(p.policy, 'rules') AS policy, e.is_deleted OR c.state <> 'connected' AS is_removed
"""
# As the indexes of ends have it (app/models/calendar_event.py).
ENDS = "coalesce(e.end_time, 'infinity'::timestamptz)"
EVENT_JOINS = """
    JOIN calendars c ON c.id = e.calendar_id
    LEFT JOIN event_bot_policies p ON p.calendar_event_id = e.id
"""

_OF_IDS = text(
    f"SELECT {EVENT_COLUMNS} FROM unnest(:event_ids) AS i(event_id) JOIN calendar_events e ON e.id = i.event_id {EVENT_JOINS}"  # noqa: S608 - constants
).bindparams(bindparam("event_ids", type_=ARRAY(Text())))


async def load_events(
    session: AnySession, event_ids: Sequence[str], *, asks_people: bool
) -> Sequence[Row[Any]]:
    """Load what judging needs of these events. Events of deleted calendars are left out."""
    values = {"event_ids": list(event_ids), "asks_people": asks_people}
    return (await session.execute(_OF_IDS, values)).all()


# The calendars are taken in order, and past the limit nothing is read. An event that is under way is ahead as well, since
# its bot may still be there. now() and not clock_timestamp(): the end of a range of an index.
_AHEAD = text(
    f"""
    SELECT e.* FROM (
        SELECT c.id, c.platform, c.owner_email, c.state, split_part(i.after, '|', 2) AS after_id,
               CAST(coalesce(nullif(split_part(i.after, '|', 1), ''), '-infinity') AS timestamptz) AS after_end
        FROM unnest(:calendar_ids, :after) WITH ORDINALITY AS i(calendar_id, after, place)
        JOIN calendars c ON c.id = i.calendar_id
        ORDER BY i.place) AS c
    CROSS JOIN LATERAL (
        SELECT {EVENT_COLUMNS.replace("p.policy", "(SELECT p.policy FROM event_bot_policies p WHERE p.calendar_event_id = e.id)")}
        FROM calendar_events e
        WHERE e.calendar_id = c.id AND NOT e.is_deleted AND {ENDS} > now() AND ({ENDS}, e.id) > (c.after_end, c.after_id)
        ORDER BY {ENDS}, e.id LIMIT :limit) AS e
    LIMIT :limit
    """  # noqa: S608 - constants
).bindparams(bindparam("calendar_ids", type_=ARRAY(Text())), bindparam("after", type_=ARRAY(Text())))


async def load_ahead(
    session: AnySession, calendars: Sequence[tuple[str, str]], limit: int, *, asks_people: bool
) -> Sequence[Row[Any]]:
    """Load what judging needs of events that are not over.

    `calendars`: ids, each with the progress of its run (runs.py). They are taken in this order.
    """
    values = {
        "calendar_ids": [one[0] for one in calendars],
        "after": [one[1] for one in calendars],
        "limit": limit,
        "asks_people": asks_people,
    }
    return (await session.execute(_AHEAD, values)).all()


_OF_MEETINGS = text(
    f"""
    SELECT {EVENT_COLUMNS}
    FROM unnest(:hashes, CAST(:since AS timestamptz[]), CAST(:until AS timestamptz[])) AS i(hash, since, until)
    JOIN calendar_events e ON e.project_id = :project_id AND md5(e.meeting_url) = i.hash
        AND e.start_time >= i.since AND e.start_time < i.until AND e.meeting_url IS NOT NULL AND NOT e.is_deleted
    {EVENT_JOINS}
    """  # noqa: S608 - constants
).bindparams(bindparam("hashes", type_=ARRAY(Text())))


async def load_meetings(
    session: AnySession,
    project_id: str,
    ranges: Collection[tuple[str, datetime, datetime]],
    *,
    asks_people: bool,
) -> Sequence[Row[Any]]:
    """Load the live events with these links (their MD5) that start in a range of time."""
    hashes, since, until = map(list, zip(*ranges, strict=True))
    values = {"project_id": project_id, "hashes": hashes, "since": since, "until": until}
    return (await session.execute(_OF_MEETINGS, {**values, "asks_people": asks_people})).all()


# A range of the index of links. Events that are long over belong to no meeting of one that is ahead.
_LINKS = text(
    f"""
    SELECT {EVENT_COLUMNS}
    FROM calendar_events e {EVENT_JOINS}
    WHERE e.project_id = :project_id AND e.meeting_url IS NOT NULL AND e.start_time IS NOT NULL
      AND NOT e.is_deleted AND (md5(e.meeting_url), e.start_time) >= (:hash, CAST(:start AS timestamptz))
      AND (e.start_time >= :since OR {ENDS} > now())
    ORDER BY md5(e.meeting_url), e.start_time
    LIMIT :limit
    """  # noqa: S608 - constants
)


async def load_links(
    session: AnySession, project_id: str, place: tuple[str, datetime], since: datetime, limit: int
) -> Sequence[Row[Any]]:
    """Load events that are not over, or start after `since`, by the hash of their link and by start."""
    values = {"project_id": project_id, "hash": place[0], "start": place[1], "since": since, "limit": limit}
    return (await session.execute(_LINKS, {**values, "asks_people": True})).all()


_WITH_WAITING = text(
    """
    SELECT DISTINCT e.id FROM calendar_events e JOIN bots b ON b.calendar_event_id = e.id
    WHERE e.calendar_id = :calendar_id AND b.join_rule IS NOT NULL AND b.state IN ('scheduled', 'launching')
    """
)


async def find_with_bots(session: AnySession, calendar_id: str) -> list[str]:
    """Return the ids of a calendar's events with a bot of a rule that may still be changed."""
    return list(await session.scalars(_WITH_WAITING, {"calendar_id": calendar_id}))


_CALENDARS = text(
    "SELECT id, deduplication_key, metadata FROM calendars WHERE id = ANY(:calendar_ids)"
).bindparams(bindparam("calendar_ids", type_=ARRAY(Text())))


async def load_calendars(session: AnySession, calendar_ids: Collection[str]) -> dict[str, CalendarFacts]:
    """Return what webhooks say about calendars, by id."""
    rows = await session.execute(_CALENDARS, {"calendar_ids": sorted(calendar_ids)})
    return {row.id: CalendarFacts(row.id, row.deduplication_key, row.metadata) for row in rows}


async def save_policy(
    session: Session, project_id: str, calendar_id: str, event_id: str, policy: Policy
) -> None:
    """Store the policy of an event. "rules" is what every event has without a row."""
    if policy == "rules":
        await session.execute(_DELETE_POLICY, {"event_id": event_id})
        return
    statement = insert(EventBotPolicy).values(
        calendar_event_id=event_id, project_id=project_id, calendar_id=calendar_id, policy=policy
    )
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[EventBotPolicy.calendar_event_id],
            set_={"policy": policy, "updated_at": text("clock_timestamp()")},
        )
    )


_DELETE_POLICY = text("DELETE FROM event_bot_policies WHERE calendar_event_id = :event_id")


_DELETE_POLICIES = text(
    "DELETE FROM event_bot_policies p USING unnest(:event_ids) AS i(event_id) WHERE p.calendar_event_id = i.event_id"
).bindparams(bindparam("event_ids", type_=ARRAY(Text())))


async def delete_policies(session: Session, event_ids: Sequence[str]) -> None:
    await session.execute(_DELETE_POLICIES, {"event_ids": list(event_ids)})


async def find_policy(session: AnySession, event_id: str) -> Policy | None:
    found: Policy | None = await session.scalar(
        select(EventBotPolicy.policy).where(EventBotPolicy.calendar_event_id == event_id)
    )
    return found


_HAS_MEETING = text(
    "SELECT EXISTS (SELECT FROM join_rules WHERE project_id = :project_id AND bot_scope = 'meeting')"
)
_HAS_RULES = text("SELECT EXISTS (SELECT FROM join_rules WHERE project_id = :project_id)")


async def has_meeting_rules(session: AnySession, project_id: str) -> bool:
    """Whether any rules of a project have `bot_scope` "meeting"."""
    return bool(await session.scalar(_HAS_MEETING, {"project_id": project_id}))


async def has_rules(session: AnySession, project_id: str) -> bool:
    """Whether a project, or any of its calendars, has rules."""
    return bool(await session.scalar(_HAS_RULES, {"project_id": project_id}))
