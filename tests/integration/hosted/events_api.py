"""Requests about events of local calendars, and the times that tests give them."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

BOB = {"email": "bob@example.org", "name": "Bob"}


CY = {"email": "cy@example.org"}


def soon(days: int, hour: int = 9) -> datetime:
    day = datetime.now(UTC).replace(hour=hour, minute=0, second=0, microsecond=0)
    return day + timedelta(days=days)


def day_without_midnight(zone: str) -> date:
    """The day of next year on which the clocks go from midnight to one."""
    days = (date(datetime.now(UTC).year + 1, 1, 1) + timedelta(days=n) for n in range(366))
    midnights = (datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)) for day in days)
    return next(at.date() for at in midnights if at.astimezone(UTC).astimezone(ZoneInfo(zone)).hour == 1)


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def create(api, body, **more):
    response = await api.post("/api/v1/calendar_events", json={**body, **more})
    assert response.status_code == 201, response.text
    return response.json()


async def rows_of(api, calendar_id, **query):
    response = await api.get(
        "/api/v1/calendar_events",
        params={"calendar_id": calendar_id, "ordering": "start_time", "is_deleted": "false", **query},
    )
    return response.json()["results"]


async def change(api, row, *, scope="instance", **body):
    response = await api.patch(f"/api/v1/calendar_events/{row['id']}?scope={scope}", json=body)
    assert response.status_code == 200, response.text
    return response.json()
