"""Builds the provider of an account by its platform."""

from typing import Literal

from app.core.http import httpx
from app.meeting_links.extract import MeetingHosts
from app.providers.base import TokenSource
from app.providers.google.sync import GoogleCalendar
from app.providers.microsoft.sync import MicrosoftCalendar
from app.settings import Settings

AccountPlatform = Literal["google", "microsoft"]


def account_calendar(
    *,
    settings: Settings,
    client: httpx.AsyncClient,
    tokens: TokenSource,
    platform: AccountPlatform,
    calendar_id: str | None,
    hosts: MeetingHosts,
) -> GoogleCalendar | MicrosoftCalendar:
    """A calendar of an account; with `calendar_id` None the account's primary one."""
    if platform == "google":
        return GoogleCalendar(
            client=client,
            tokens=tokens,
            base_url=settings.google_api_base_url,
            calendar_id=calendar_id,
            hosts=hosts,
        )
    return MicrosoftCalendar(
        client=client,
        tokens=tokens,
        base_url=settings.microsoft_graph_base_url,
        calendar_id=calendar_id,
        hosts=hosts,
    )
