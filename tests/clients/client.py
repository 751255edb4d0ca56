"""Run by test_clients.py with the generated `calbridge_client`: what an application does with a Python client."""

import os
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

from calbridge_client import AuthenticatedClient, Client
from calbridge_client.api.bots import create_bot, update_bot
from calbridge_client.api.calendar_events import create_calendar_event, update_calendar_event
from calbridge_client.api.calendars import create_calendar, get_calendar, list_calendars
from calbridge_client.api.webhooks import create_webhook, list_webhooks, update_webhook
from calbridge_client.models import (
    BotCreate,
    BotRead,
    BotUpdate,
    BotUpdateMetadataType0,
    CalendarEvent,
    CalendarEventCreate,
    CalendarEventUpdate,
    CalendarRead,
    DetailAnswer,
    ErrorAnswer,
    FeedCalendarCreate,
    FieldErrors,
    LocalCalendarCreate,
    PageReadCalendarRead,
    WebhookCreate,
    WebhookCreateTriggersItem,
    WebhookRead,
    WebhookUpdate,
    WebhookWithSecret,
)

URL = os.environ["API_URL"]
client = AuthenticatedClient(base_url=URL, token=os.environ["API_KEY"])


def local(name: str) -> LocalCalendarCreate:
    return LocalCalendarCreate(platform="local", name=name, owner_email="ada@example.com")


def main() -> None:
    create()
    update()
    read_pages()
    read_errors()


def create() -> None:
    """What has a default may be left out."""
    feed = FeedCalendarCreate(platform="ics", feed_url="http://127.0.0.1:9/feed.ics")
    made = create_calendar.sync(client=client, body=feed)
    assert isinstance(made, CalendarRead), made
    made = create_calendar.sync(client=client, body=local("Lectures"), idempotency_key="the first local one")
    assert isinstance(made, CalendarRead), made
    assert (made.timezone, made.locale) == ("UTC", "en")
    assert datetime.now(UTC) - made.created_at < timedelta(minutes=5)


def update() -> None:
    """One field; the others stay as they are."""
    body = WebhookCreate(
        url="http://127.0.0.1:9/hook",
        triggers=[WebhookCreateTriggersItem.CALENDAR_EVENTS_UPDATE],
        is_active=False,
    )
    hook = create_webhook.sync(client=client, body=body)
    assert isinstance(hook, WebhookWithSecret), hook
    assert hook.secret
    patched = update_webhook.sync(hook.id, client=client, body=WebhookUpdate(include_events=True))
    assert isinstance(patched, WebhookRead), patched
    assert (patched.include_events, patched.is_active, patched.url) == (True, False, body.url)
    moved = update_webhook.sync(hook.id, client=client, body=WebhookUpdate(url="http://127.0.0.1:9/other"))
    assert isinstance(moved, WebhookRead), moved
    assert (moved.include_events, moved.is_active) == (True, False)

    at = datetime.now(UTC) + timedelta(days=1)
    bot = create_bot.sync(
        client=client,
        body=BotCreate(bot_name="Notetaker", meeting_url="https://zoom.us/j/5551112222", join_at=at),
    )
    assert isinstance(bot, BotRead), bot
    metadata = BotUpdateMetadataType0.from_dict({"user_id": "42"})
    bot = update_bot.sync(bot.id, client=client, body=BotUpdate(metadata=metadata))
    assert isinstance(bot, BotRead), bot
    assert (bot.bot_name, bot.join_at) == ("Notetaker", at)

    calendar = create_calendar.sync(client=client, body=local("Days"))
    assert isinstance(calendar, CalendarRead), calendar
    day = datetime(2031, 1, 31, tzinfo=UTC)
    event = create_calendar_event.sync(
        client=client,
        body=CalendarEventCreate(
            calendar_id=calendar.id,
            name="A day",
            start_time=day,
            end_time=day + timedelta(days=1),
            is_all_day=True,
        ),
    )
    assert isinstance(event, CalendarEvent), event
    event = update_calendar_event.sync(event.id, client=client, body=CalendarEventUpdate(name="The day"))
    assert isinstance(event, CalendarEvent), event
    assert (event.name, event.is_all_day, event.start_time) == ("The day", True, day)


def read_pages() -> None:
    for number in range(30):
        assert isinstance(create_calendar.sync(client=client, body=local(f"{number}")), CalendarRead)
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = list_calendars.sync(client=client, **({"cursor": cursor} if cursor else {}))
        assert isinstance(page, PageReadCalendarRead), page
        found += [calendar.id for calendar in page.results]
        cursor = parse_qs(urlsplit(page.next_).query)["cursor"][0] if page.next_ else None
    assert len(found) == len(set(found)) == 33, len(found)


def read_errors() -> None:
    wrong = create_calendar.sync(client=client, body=FeedCalendarCreate(platform="ics", feed_url="nowhere"))
    assert isinstance(wrong, FieldErrors), wrong
    assert "https://" in wrong["feed_url"][0], wrong
    bad_page = list_calendars.sync(client=client, cursor="nowhere")
    assert isinstance(bad_page, ErrorAnswer), bad_page
    missing = get_calendar.sync("cal_0000000000000000", client=client)
    assert isinstance(missing, ErrorAnswer), missing
    assert missing.error == "Calendar not found"
    refused = list_webhooks.sync(client=AuthenticatedClient(base_url=URL, token="wrong"))
    assert isinstance(refused, DetailAnswer), refused
    refused = list_webhooks.sync(client=Client(base_url=URL))  # no key
    assert isinstance(refused, DetailAnswer), refused


main()
