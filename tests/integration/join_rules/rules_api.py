"""Local calendars, their events and join rules, over the API."""

from datetime import timedelta
from typing import Any

from app.core.clock import isoformat, utcnow

RULES = "/api/v1/join_rules"
EVENTS = "/api/v1/calendar_events"
LINK = "https://zoom.us/j/5551112222"
OTHER_LINK = "https://zoom.us/j/5551113333"
OWNER = "ada@ours.example"


def rule(name: str = "all", *, join: bool = True, bot: Any = None, **when: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "when": when, "join": join}
    if join or bot is not None:
        made["bot"] = bot or {"bot_name": f"Bot of {name}"}
    return made


def at(hours: float) -> str:
    return isoformat(utcnow().replace(minute=0, second=0, microsecond=0) + timedelta(hours=hours))


async def add_calendar(api: Any, owner: str = OWNER) -> str:
    body = {"platform": "local", "name": "Calendar", "owner_email": owner, "timezone": "Europe/Paris"}
    response = await api.post("/api/v1/calendars", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def add_event(api: Any, calendar_id: str, **fields: Any) -> str:
    body = {
        "calendar_id": calendar_id,
        "name": "Review",
        "start_time": at(24),
        "end_time": at(25),
        "meeting_url": LINK,
        "send_invitations": False,
        **fields,
    }
    response = await api.post(EVENTS, json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def change_event(api: Any, event_id: str, **fields: Any) -> None:
    response = await api.patch(f"{EVENTS}/{event_id}", json={"send_invitations": False, **fields})
    assert response.status_code == 200, response.text


async def set_rules(
    api: Any, *rules: dict[str, Any], calendar_id: str | None = None, scope: str = "event"
) -> Any:
    url = RULES if calendar_id is None else f"/api/v1/calendars/{calendar_id}/join_rules"
    body = {"rules": list(rules), "bot_scope": scope}
    response = await api.put(url, json=body)
    assert response.status_code == 200, response.text
    assert response.json() == body
    return response.json()


async def set_policy(api: Any, event_id: str, policy: str) -> Any:
    return await api.put(f"{EVENTS}/{event_id}/bot_policy", json={"policy": policy})


async def bots_of(api: Any, event_id: str) -> list[dict[str, Any]]:
    response = await api.get(f"{EVENTS}/{event_id}")
    assert response.status_code == 200, response.text
    bots: list[dict[str, Any]] = response.json()["bots"]
    return bots


async def names_of(api: Any, event_id: str) -> list[str]:
    return [bot["bot_name"] for bot in await bots_of(api, event_id)]
