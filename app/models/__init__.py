"""The tables. Alembic and the mapper import this package to know all of them."""

from app.models.base import Base
from app.models.bot import Bot, DeletedRuleBot
from app.models.breaker import SyncBreaker, SyncVote
from app.models.calendar import Calendar
from app.models.calendar_event import CalendarEvent, DeletedCalendar
from app.models.credentials import Credentials
from app.models.hosted_event import HostedEvent, InboundReply
from app.models.invitation import InvitationMail, MailLane
from app.models.join_rule import EventBotPolicy, JoinRuleRun, JoinRules
from app.models.oauth import OAuthApp, OAuthClientSecret, OAuthSession
from app.models.operations import StoredResponse, WorkerHeartbeat
from app.models.project import ApiKey, Project
from app.models.push_channel import PushChannel
from app.models.starting_soon import StartingSoonNotice, StartingSoonPosition
from app.models.webhook import WebhookDelivery, WebhookSubscription

__all__ = [
    "ApiKey",
    "Base",
    "Bot",
    "Calendar",
    "CalendarEvent",
    "Credentials",
    "DeletedCalendar",
    "DeletedRuleBot",
    "EventBotPolicy",
    "HostedEvent",
    "InboundReply",
    "InvitationMail",
    "JoinRuleRun",
    "JoinRules",
    "MailLane",
    "OAuthApp",
    "OAuthClientSecret",
    "OAuthSession",
    "Project",
    "PushChannel",
    "StartingSoonNotice",
    "StartingSoonPosition",
    "StoredResponse",
    "SyncBreaker",
    "SyncVote",
    "WebhookDelivery",
    "WebhookSubscription",
    "WorkerHeartbeat",
]
