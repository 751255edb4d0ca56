"""All tables. Importing this package is what alembic and the mapper need."""

from app.models.base import Base
from app.models.calendar import Calendar
from app.models.calendar_event import CalendarEvent
from app.models.credentials import Credentials
from app.models.operations import IdempotentAnswer, WorkerHeartbeat
from app.models.project import ApiKey, Project
from app.models.push_channel import PushChannel
from app.models.webhook import WebhookDelivery, WebhookSubscription

__all__ = [
    "ApiKey",
    "Base",
    "Calendar",
    "CalendarEvent",
    "Credentials",
    "IdempotentAnswer",
    "Project",
    "PushChannel",
    "WebhookDelivery",
    "WebhookSubscription",
    "WorkerHeartbeat",
]
