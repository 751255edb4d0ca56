"""Liveness, readiness and metrics (docs/reference/http-api.md, "Health and metrics").

They need no API key, so keep them inside the operator's network.
"""

import asyncio
from datetime import timedelta
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, BeforeValidator

from app.api.deps import AppState
from app.api.schemas import ErrorAnswer
from app.core.metrics import render
from app.health import service
from app.health.gauges import GaugeReader

router = APIRouter(tags=["health"])

_METRICS_CONTENT = {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}


async def _gauge_reader(request: Request, state: AppState) -> GaugeReader:
    if not hasattr(request.app.state, "gauge_reader"):
        lead = timedelta(seconds=state.settings.bot_launch_lead_seconds)
        request.app.state.gauge_reader = GaugeReader(state.sessions, bot_lead=lead)
    reader: GaugeReader = request.app.state.gauge_reader
    return reader


async def _readiness_checker(request: Request, state: AppState) -> service.ReadinessChecker:
    if not hasattr(request.app.state, "readiness_checker"):
        checker = service.ReadinessChecker(state.read_sessions, state.wakeups)
        request.app.state.readiness_checker = checker
    kept: service.ReadinessChecker = request.app.state.readiness_checker
    return kept


class Alive(BaseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The result of the checks of database, redis, migrations and worker.

    `checks` has "ok" or a sentence for each. `degraded` lists failed checks that the service can do without for a while.
    """

    status: Literal["ok", "degraded", "unavailable"]
    degraded: list[str]
    checks: dict[str, str]


@router.get("/healthz", operation_id="healthz", summary="Check Liveness")
async def healthz() -> Alive:
    """Returns 200 while the process runs. It checks nothing else."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Check Readiness",
    response_model=Readiness,
    responses={
        400: {"description": "Bad query", "model": ErrorAnswer},
        503: {"description": "The process is not ready", "model": Readiness},
    },
)
async def readyz(
    checker: Annotated[service.ReadinessChecker, Depends(_readiness_checker)],
    strict: Annotated[
        bool,
        # `?strict` alone.
        BeforeValidator(lambda value: value or "true"),
        Query(description="Also return 503 if Redis or a worker is missing."),
    ] = False,
) -> Response:
    """Returns 200 if the database is available and its schema is not older than this code.

    Without Redis or a live worker, the status is `degraded`: calls work, but syncs and webhooks come late.
    """
    found = await checker.check()
    status = "unavailable" if not found.is_ready else "degraded" if found.degraded else "ok"
    body = {"status": status, "degraded": found.degraded, "checks": found.checks}
    is_fine = status == "ok" or (status == "degraded" and not strict)
    return Response(orjson.dumps(body), 200 if is_fine else 503, media_type="application/json")


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Read Metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text", "content": _METRICS_CONTENT}},
)
async def metrics(gauges: Annotated[GaugeReader, Depends(_gauge_reader)]) -> Response:
    """Returns the metrics of all API processes, and gauges over the database, as Prometheus text.

    Workers serve their own metrics: `calbridge worker --metrics-port`.
    """
    own = await asyncio.to_thread(render)
    return Response(own + await gauges.read(), media_type=CONTENT_TYPE_LATEST)
