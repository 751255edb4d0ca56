"""Reading the log of deliveries."""

from sqlalchemy import literal, select
from sqlalchemy.orm import defer

from app.core.db import AnySession
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.models import WebhookDelivery, WebhookSubscription

_sub = WebhookSubscription
_dlv = WebhookDelivery

_NEWEST_FIRST = Ordering("-created_at", _dlv.created_at.expression, _dlv.id.expression, descending=True)


async def list_deliveries(
    session: AnySession, endpoint_id: str, *, status: str | None, cursor_text: str | None, limit: int
) -> Page[WebhookDelivery]:
    """List an endpoint's deliveries without their bodies, newest first. Raises BadQuery for a bad cursor."""
    statement = (
        select(_dlv).where(_dlv.subscription_id == endpoint_id).options(defer(_dlv.body, raiseload=True))
    )
    if status is not None:
        # Literal, so that the planner knows when a partial index fits.
        statement = statement.where(_dlv.status == literal(status, literal_execute=True))
    cursor = Cursor.decode(cursor_text, ordering=_NEWEST_FIRST.name) if cursor_text is not None else None
    rows = (await session.scalars(seek(statement, _NEWEST_FIRST, cursor, limit))).all()
    return page_of(rows, _NEWEST_FIRST, cursor, limit, place=lambda row: (row.created_at, row.id))


async def find_delivery(session: AnySession, project_id: str, delivery_id: str) -> WebhookDelivery | None:
    """Find a delivery of this project, with its body."""
    return await session.scalar(
        select(_dlv)
        .join(_sub, _sub.id == _dlv.subscription_id)
        .where(_dlv.id == delivery_id, _sub.project_id == project_id)
    )


async def find_endpoint_id(session: AnySession, project_id: str, delivery_id: str) -> str | None:
    """Find the id of the endpoint that a delivery of this project belongs to."""
    return await session.scalar(
        select(_sub.id)
        .join(_dlv, _dlv.subscription_id == _sub.id)
        .where(_dlv.id == delivery_id, _sub.project_id == project_id)
    )
