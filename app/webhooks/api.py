"""HTTP routes of webhooks and their deliveries (docs/reference/http-api.md, "Webhooks")."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.deps import AppState, DbReadSession, DbSession, ProjectId
from app.api.idempotency import Idempotent
from app.api.pages import ListQuery, PageRead, page_links
from app.api.paths import DeliveryId, WebhookId
from app.api.schemas import responses
from app.core.db import reading
from app.webhooks import service
from app.webhooks.samples import SampleSender
from app.webhooks.schemas import (
    DeliveriesQuery,
    DeliveryDetail,
    DeliveryRead,
    ReplayQueued,
    ReplayRequest,
    TestResult,
    WebhookCreate,
    WebhookRead,
    WebhookUpdate,
    WebhookWithSecret,
)

router = APIRouter(prefix="/api/v1", tags=["webhooks"])


@router.get("/webhooks", operation_id="list_webhooks", responses=responses())
async def list_webhooks(
    request: Request, session: DbReadSession, project_id: ProjectId, query: Annotated[ListQuery, Query()]
) -> PageRead[WebhookRead]:
    """The project's webhooks, newest first, 25 a page."""
    page = await service.list_webhooks(session, project_id, query)
    return PageRead(**page_links(request, page), results=list(page.rows))


@router.post(
    "/webhooks",
    operation_id="create_webhook",
    status_code=201,
    response_model=WebhookWithSecret,
    responses=responses(409, 413, 429),
)
async def create_webhook(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    idempotent: Idempotent,
    body: WebhookCreate,
) -> Response:
    """Subscribes an endpoint. Only this response has the secret that its deliveries are signed with."""
    return await idempotent.once(
        lambda: service.create_webhook(session, state.box, state.settings, project_id, body)
    )


@router.get("/webhooks/{webhook_id}", operation_id="get_webhook", responses=responses(404, takes_input=False))
async def get_webhook(session: DbReadSession, project_id: ProjectId, webhook_id: WebhookId) -> WebhookRead:
    """One webhook."""
    return await service.get_webhook(session, project_id, webhook_id)


@router.patch("/webhooks/{webhook_id}", operation_id="update_webhook", responses=responses(404, 413))
async def update_webhook(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    webhook_id: WebhookId,
    body: WebhookUpdate,
) -> WebhookRead:
    """Changes a webhook. When it is enabled again, pending deliveries are sent at once."""
    return await service.update_webhook(session, state.settings, project_id, webhook_id, body)


@router.delete(
    "/webhooks/{webhook_id}",
    operation_id="delete_webhook",
    response_class=Response,
    responses={**responses(404, takes_input=False), 200: {"description": "Deleted; the body is empty."}},
)
async def delete_webhook(session: DbSession, project_id: ProjectId, webhook_id: WebhookId) -> Response:
    """Removes the webhook, its log and its pending deliveries."""
    await service.delete_webhook(session, project_id, webhook_id)
    return Response()


@router.post(
    "/webhooks/{webhook_id}/rotate_secret",
    operation_id="rotate_webhook_secret",
    response_model=WebhookWithSecret,
    responses=responses(404, 409, 429),
)
async def rotate_secret(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    webhook_id: WebhookId,
    idempotent: Idempotent,
) -> Response:
    """Makes a new secret, shown once.

    For 24 hours `webhook-signature` also has a signature by the old one.
    """
    return await idempotent.once(
        lambda: service.rotate_secret(session, state.box, project_id, webhook_id), status_code=200
    )


@router.post(
    "/webhooks/{webhook_id}/test",
    operation_id="test_webhook",
    responses=responses(404, 429, takes_input=False),
)
async def test_webhook(
    request: Request, state: AppState, project_id: ProjectId, webhook_id: WebhookId
) -> TestResult:
    """Sends a signed sample now, and returns how the endpoint responded.

    It is not among the deliveries: it announces no change, is never sent again, and the response has all there is to know.
    At most 30 a minute.
    """
    async with reading(state.read_sessions) as session:
        webhook = await service.find_webhook(session, project_id, webhook_id)
    samples: SampleSender = request.app.state.samples
    return await samples.send(webhook)


@router.get(
    "/webhooks/{webhook_id}/deliveries", operation_id="list_webhook_deliveries", responses=responses(404)
)
async def list_deliveries(
    request: Request,
    session: DbReadSession,
    project_id: ProjectId,
    webhook_id: WebhookId,
    query: Annotated[DeliveriesQuery, Query()],
) -> PageRead[DeliveryRead]:
    """What was sent or is to be sent, with every attempt; newest first, 25 a page."""
    page = await service.list_deliveries(session, project_id, webhook_id, query)
    return PageRead(**page_links(request, page), results=list(page.rows))


@router.post(
    "/webhooks/{webhook_id}/replay",
    operation_id="replay_webhook",
    status_code=202,
    response_model=ReplayQueued,
    responses=responses(404, 409, 413, 429),
)
async def replay(
    *,
    session: DbSession,
    project_id: ProjectId,
    webhook_id: WebhookId,
    idempotent: Idempotent,
    body: ReplayRequest,
) -> Response:
    """Sends everything since a time again, oldest first, with the same ids and bytes.

    Workers queue it in batches.
    """

    async def work() -> ReplayQueued:
        return ReplayQueued(count=await service.replay(session, project_id, webhook_id, body.since))

    return await idempotent.once(work, status_code=202)


@router.get(
    "/webhook_deliveries/{delivery_id}",
    operation_id="get_webhook_delivery",
    responses=responses(404, takes_input=False),
)
async def get_delivery(
    session: DbReadSession, project_id: ProjectId, delivery_id: DeliveryId
) -> DeliveryDetail:
    """One delivery with its body, its headers and every attempt."""
    return await service.get_delivery(session, project_id, delivery_id)


@router.post(
    "/webhook_deliveries/{delivery_id}/redeliver",
    operation_id="redeliver_webhook_delivery",
    status_code=202,
    response_model=DeliveryRead,
    responses=responses(404, 409, 429),
)
async def redeliver(
    *,
    session: DbSession,
    project_id: ProjectId,
    delivery_id: DeliveryId,
    idempotent: Idempotent,
) -> Response:
    """Sends a delivery again now, whatever its status, with the same id and bytes."""
    return await idempotent.once(lambda: service.redeliver(session, project_id, delivery_id), status_code=202)
