"""The hosts of self-hosted meeting platforms."""

from app.meeting_links.extract import MeetingHosts
from app.settings import Settings


def meeting_hosts(settings: Settings) -> MeetingHosts:
    """The hosts of self-hosted meeting platforms, and the platforms that the bot runner can join."""
    known = MeetingHosts()
    return MeetingHosts(
        visio=known.visio | settings.meeting_url_visio_hosts,
        jitsi=known.jitsi | settings.meeting_url_jitsi_hosts,
        preferred=settings.bot_runner_platforms,
    )
