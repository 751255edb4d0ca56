"""Liveness, readiness and metrics (contract 8). No API key: keep them inside the operator's network."""

from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from app.api.deps import AppState
from app.health import service
from app.health.service import GaugeReader

router = APIRouter(tags=["health"])

_METRICS_CONTENT = {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}


async def _gauge_reader(request: Request) -> GaugeReader:
    state = request.app.state
    if not hasattr(state, "gauge_reader"):
        state.gauge_reader = GaugeReader()
    reader: GaugeReader = state.gauge_reader
    return reader


class Alive(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """`checks`: "ok" or what is wrong, for each of database, redis, migrations and worker."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


@router.get("/healthz", operation_id="healthz")
async def healthz() -> Alive:
    """200 as long as the process answers; it asks nothing and nobody."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="readyz",
    response_model=Readiness,
    responses={503: {"description": "Not ready", "model": Readiness}},
)
async def readyz(state: AppState) -> Response:
    """200 when the database, Redis, the schema and a worker are there; 503 otherwise."""
    checks = await service.check_readiness(state.read_sessions, state.doorbell)
    ready = all(outcome == "ok" for outcome in checks.values())
    body = {"status": "ok" if ready else "unavailable", "checks": checks}
    return Response(orjson.dumps(body), 200 if ready else 503, media_type="application/json")


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text", "content": _METRICS_CONTENT}},
)
async def metrics(state: AppState, gauges: Annotated[GaugeReader, Depends(_gauge_reader)]) -> Response:
    """Counters and histograms of this process, and gauges over the whole database.

    With several API processes behind one port each answers for itself: scrape them one by one, or add up.
    """
    own = generate_latest()
    return Response(own + await gauges.read(state.read_sessions), media_type=CONTENT_TYPE_LATEST)
