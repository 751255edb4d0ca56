"""Endpoints for notifications of providers, which the channel's secret authenticates."""

from datetime import timedelta
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import PlainTextResponse

from app.api.deps import AppState, DbSession, State
from app.api.schemas import responses
from app.core.errors import BadQuery, InvalidFields
from app.push import service

router = APIRouter(prefix="/notifications", tags=["notifications"])

_LONGEST_VALIDATION_TOKEN = 4096
_BATCH = {
    "schema": {
        "type": "object",
        "properties": {
            "value": {"type": "array", "items": {}, "description": "Items of another form are skipped."}
        },
    },
    "example": {
        "value": [
            {
                "subscriptionId": "7f105c7d-2dc5-4530-97cd-4e7ae6534c07",
                "clientState": "the subscription's secret",
                "changeType": "updated",
            }
        ]
    },
}


def _failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: response for code, response in responses(413).items() if code in codes}


@router.post(
    "/google",
    operation_id="receive_google_notification",
    response_class=Response,
    responses={200: {"description": "Taken, or ignored; the body is empty."}, **_failures(413, 503)},
)
async def receive_google_notification(
    *,
    session: DbSession,
    state: AppState,
    channel_id: Annotated[str | None, Header(alias="X-Goog-Channel-ID")] = None,
    token: Annotated[str | None, Header(alias="X-Goog-Channel-Token")] = None,
    resource_state: Annotated[str | None, Header(alias="X-Goog-Resource-State")] = None,
    resource_id: Annotated[str | None, Header(alias="X-Goog-Resource-ID")] = None,
) -> Response:
    """A message of a Google push channel. It makes its calendar due for a sync; unknown ones are ignored."""
    await service.accept_google(
        session,
        channel_id=channel_id,
        token=token,
        resource_state=resource_state,
        resource_id=resource_id,
        debounce=_debounce(state),
    )
    return Response()


@router.post(
    "/microsoft",
    operation_id="receive_microsoft_notifications",
    response_class=Response,
    status_code=202,
    responses={
        200: {
            "description": "The validation token, decoded; empty where there was nothing for us in the batch.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        202: {"description": "Taken; the body is empty."},
        **_failures(400, 413, 503),
    },
    openapi_extra={"requestBody": {"content": {"application/json": _BATCH}}},
)
async def receive_microsoft_notifications(
    *,
    request: Request,
    session: DbSession,
    state: AppState,
) -> Response:
    """Change and lifecycle notifications of Microsoft Graph, which make their calendars due for a sync.

    With `validationToken` in the query it is the handshake by which Graph tries the address: the body does not count.
    """
    # Not declared as a parameter: OpenAPI would then promise that the body is checked all the same.
    validation_token = request.query_params.get("validationToken")
    if validation_token is not None:
        if len(validation_token) > _LONGEST_VALIDATION_TOKEN:
            raise BadQuery(f"validationToken: Longer than {_LONGEST_VALIDATION_TOKEN} characters.")
        return PlainTextResponse(validation_token, headers={"X-Content-Type-Options": "nosniff"})
    accepted = await service.accept_microsoft(
        session, _items(await request.body()), debounce=_debounce(state)
    )
    return Response(status_code=202) if accepted else PlainTextResponse("")


def _items(body: bytes) -> list[Any]:
    """No body, and one without `value`, is an empty batch. Raises InvalidFields."""
    if not body:
        return []
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidFields.one("non_field_errors", "The body is not valid JSON.") from None
    if isinstance(document, dict) and document.get("value") is None:
        return []
    items = document.get("value") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise InvalidFields.one("value", "Send a list of notifications.")
    return items


def _debounce(state: State) -> timedelta:
    return timedelta(seconds=state.settings.calendar_push_debounce_seconds)
