"""Prometheus metrics of a process, or of several that share PROMETHEUS_MULTIPROC_DIR.

app/health/gauges.py reads gauges over all rows from the database. Labels take few values: never an id or an address.
"""

import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

HTTP_SECONDS = Histogram(
    "calbridge_http_request_seconds",
    "Time to respond to a request",
    ["method", "route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
SYNC_SECONDS = Histogram(
    "calbridge_sync_seconds",
    "Duration of a calendar's sync",
    ["platform", "outcome"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
SYNC_EVENTS = Counter(
    "calbridge_sync_events_total", "Events created, updated and deleted by syncs", ["platform", "change"]
)
TOKEN_REFRESHES = Counter(
    "calbridge_token_refreshes_total", "Access token refreshes", ["platform", "outcome"]
)
PUSH_CHANNELS = Counter(
    "calbridge_push_channels_total",
    "Push channels opened, renewed, refused and closed, and attempts that failed",
    ["platform", "outcome"],
)
PUSH_NOTIFICATIONS = Counter(
    "calbridge_push_notifications_total", "Notifications from providers", ["platform", "outcome"]
)
BOT_LAUNCHES = Counter(
    "calbridge_bot_launches_total", "Bots that were due, and what became of them", ["outcome"]
)
INVITATION_MAILS = Counter(
    "calbridge_invitation_mails_total",
    "Attempts to send a mail, and what became of them",
    ["method", "outcome"],
)
INVITATION_MAILS_UNSAFE = Counter(
    "calbridge_invitation_mails_unsafe_total",
    "Mails that were not sent because they named someone other than their recipient",
)
INBOUND_REPLIES = Counter(
    "calbridge_inbound_replies_total",
    "Mails posted to the RSVP endpoint: applied, or why they were ignored",
    ["source", "outcome"],
)
DELIVERY_ATTEMPTS = Counter(
    "calbridge_webhook_attempts_total", "Webhook delivery attempts", ["trigger", "outcome"]
)
DELIVERY_SECONDS = Histogram(
    "calbridge_webhook_attempt_seconds",
    "Duration of a webhook delivery attempt",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
WORK_IN_PROGRESS = Gauge(
    "calbridge_work_in_progress",
    "Items that workers are handling",
    ["work"],
    multiprocess_mode="livesum",
)
WORK_SLOTS = Gauge(
    "calbridge_work_slots",
    "Items that workers can handle at once",
    ["work"],
    multiprocess_mode="livesum",
)
WORK_FAILURES = Counter(
    "calbridge_work_failures_total",
    "Claims that failed, and items that ended with an unexpected error",
    ["work", "step"],
)
WAITING_FOR_CHANGES = Gauge(
    "calbridge_waiting_for_changes",
    "Clients that wait for changes: requests with `wait`, and streams",
    ["kind"],
    multiprocess_mode="livesum",
)
EVENT_LOOP_DELAY = Histogram(
    "calbridge_event_loop_delay_seconds",
    "Delay of a worker's event loop, measured every second",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)

_SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


def render() -> bytes:
    """All metrics as Prometheus text: of this process, or of all that share PROMETHEUS_MULTIPROC_DIR.

    Totals include processes that have ended, so that they never shrink.
    """
    directory = os.environ.get(_SHARED_DIRECTORY)
    if not directory:
        return generate_latest(REGISTRY)
    _remove_gauges_of_ended_processes(Path(directory))
    registry = CollectorRegistry()
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _remove_gauges_of_ended_processes(directory: Path) -> None:
    # gauge_livesum_1234.db: the last part is the process id.
    for process_id in {int(path.stem.rpartition("_")[2]) for path in directory.glob("gauge_live*.db")}:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            # Another process may be serving a scrape, too.
            with suppress(FileNotFoundError):
                mark_process_dead(process_id, str(directory))  # type: ignore[no-untyped-call]
        except PermissionError:
            pass
