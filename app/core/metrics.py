"""Prometheus metrics of a process. Gauges over all rows are read from the database by app/health/."""

from prometheus_client import Counter, Histogram

HTTP_SECONDS = Histogram(
    "calbridge_http_request_seconds",
    "Time to answer a request",
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
SYNC_EVENTS_ODD = Counter(
    "calbridge_sync_events_odd_total", "Events that could be read only in part", ["platform"]
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
