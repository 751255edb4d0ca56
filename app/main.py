"""The FastAPI application: routers, middleware, error handlers and lifespan.

Importing it has no side effects.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from app.api.deps import State
from app.api.docs import install_docs
from app.api.errors import install_error_handlers
from app.api.middleware import HeadAsGet, RequestContext, TooLargeAsJson
from app.api.openapi import install_openapi, package_version
from app.availability.api import router as availability
from app.availability.live import LiveAccess
from app.bots.api import router as bots
from app.calendar_events.api import router as calendar_events
from app.calendars.api import router as calendars
from app.changes.api import router as changes
from app.changes.hub import Hub
from app.core.crypto import SecretBox
from app.core.db import create_engine, create_sessions
from app.core.http import operator_client
from app.core.logging import configure_logging
from app.core.ratelimit import RateLimiter
from app.core.termination import before_termination
from app.core.wakeups import WakeUps, connect_redis
from app.demo.api import router as demo
from app.health.api import router as health
from app.hosted.api import router as hosted
from app.invitations.api import router as invitations
from app.join_rules.api import router as join_rules
from app.mail.api import router as mailboxes
from app.mail.lasuite.mailboxes import Messages
from app.meeting_urls.api import router as meeting_urls
from app.oauth.api import router as oauth
from app.projects.service import KeyCheck
from app.push.api import router as push
from app.rsvp.api import router as rsvp
from app.rsvp.inbound_api import router as rsvp_inbound
from app.rsvp.senders import SenderKeys
from app.settings import Settings, load_settings
from app.webhooks.api import router as webhooks
from app.webhooks.openapi import router as webhook_payloads
from app.webhooks.samples import SampleSender

_DESCRIPTION = """
Connect calendars (Google, Microsoft, any iCal feed), read their events, and get a signed webhook for every change.

Every call needs an API key: `Authorization: Bearer <api key>`. `Token` in place of `Bearer` also works. Start with
`POST /api/v1/calendars`.

Strings must not contain NUL characters. Error messages are for people. Programs should use the status code and the
field names.
"""

_MAX_BODY_BYTES = 1_048_576


def create_app(settings: Settings) -> FastAPI:
    """Return the application. Raises SettingsError if a required setting is missing."""
    database_url = settings.required_database_url()
    redis_url = settings.required_redis_url()
    box = SecretBox(settings.required_fernet_keys())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = create_engine(database_url, pool_size=settings.database_pool_size)
        async with operator_client() as http:
            wakeups = WakeUps(connect_redis(redis_url))
            rsvp_limiter = RateLimiter(redis_url, prefix="rsvp")
            post_limiter = RateLimiter(redis_url, prefix="api_posts")
            samples = SampleSender(settings, box, redis_url)
            sessions = create_sessions(engine, after_commit=wakeups.send_requested)
            read_sessions = create_sessions(engine.execution_options(isolation_level="AUTOCOMMIT"))
            keys = KeyCheck(sessions, read_sessions)
            app.state.calbridge = State(
                settings=settings,
                sessions=sessions,
                read_sessions=read_sessions,
                keys=keys,
                box=box,
                wakeups=wakeups,
                http=http,
                post_limiter=post_limiter,
            )
            live_access = LiveAccess(
                settings=settings, sessions=sessions, read_sessions=read_sessions, box=box, client=http
            )
            app.state.live_access = live_access
            app.state.messages = Messages(settings, http)
            app.state.rsvp_limiter = rsvp_limiter
            app.state.samples = samples
            app.state.sender_keys = SenderKeys()
            app.state.changes = hub = Hub(read_sessions, redis_url)
            with before_termination(hub.close):
                yield
            await hub.aclose()
            await live_access.aclose()
            await keys.aclose()
            await samples.aclose()
            await rsvp_limiter.aclose()
            await post_limiter.aclose()
            await wakeups.aclose()
        await engine.dispose()

    app = FastAPI(
        title="calbridge",
        version=package_version(),
        summary="Calendar sync, hosted calendars and meeting bots over one HTTP API.",
        description=_DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        contact={"name": "calbridge"},
        webhooks=webhook_payloads,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    install_error_handlers(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=_MAX_BODY_BYTES)
    app.add_middleware(TooLargeAsJson)
    app.add_middleware(RequestContext)
    for router in (
        calendars,
        calendar_events,
        changes,
        hosted,
        availability,
        invitations,
        mailboxes,
        bots,
        join_rules,
        webhooks,
        meeting_urls,
        oauth,
        push,
        rsvp,
        rsvp_inbound,
        health,
    ):
        app.include_router(router)
    if settings.demo_feed_url is not None:
        app.include_router(demo)
    install_docs(app)
    install_openapi(app, server_url=settings.app_url)
    return app


def create_app_from_env() -> FastAPI:
    """Return the application for uvicorn, with settings from the environment, and configure logging."""
    settings = load_settings()
    configure_logging(level=settings.log_level, json=settings.environment == "production")
    return create_app(settings)
