"""Routes of OAuth apps and sessions, and the provider's callback.

See docs/reference/http-api.md, "OAuth apps and sessions".
"""

import base64
import hashlib
import html
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import AfterValidator

from app.api.deps import AppState, DbReadSession, DbSession, ProjectId
from app.api.idempotency import Idempotent
from app.api.languages import visitor_language
from app.api.paths import require_id
from app.api.schemas import responses
from app.core.languages import Language
from app.oauth import apps, sessions
from app.oauth.callback import OAuthCallback
from app.oauth.errors import StateRefused
from app.oauth.schemas import (
    OAuthAppCreate,
    OAuthAppRead,
    OAuthAppsRead,
    OAuthAppUpdate,
    OAuthPlatform,
    OAuthSessionCreate,
    OAuthSessionRead,
)

router = APIRouter(tags=["oauth"])


def _app(value: str) -> str:
    if value in {"google", "microsoft"}:
        return value
    return require_id(value, prefix="oapp", what="OAuth app")


App = Annotated[
    str,
    Path(
        description="The app's id or its platform.",
        json_schema_extra={"pattern": "^(google|microsoft|oapp_[A-Za-z0-9]{16})$"},
    ),
    AfterValidator(_app),
]

_STYLE = (
    "body{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:20vh auto 0;padding:0 1.5rem;"
    "color:#1d2733;background:#fff}h1{font-size:1.5rem}"
    "@media(prefers-color-scheme:dark){body{color:#e8ecf1;background:#14181d}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_TITLES: dict[Language, str] = {
    "en": "This link does not work any more",
    "fr": "Ce lien ne fonctionne plus",
}
_SENTENCES: dict[Language, str] = {
    "en": "Connecting a calendar has to be finished within {minutes} minutes, and each attempt works once. "
    "Nothing was changed. Go back to the application you came from and start again.",
    "fr": "La connexion d’un agenda doit être terminée en {minutes} minutes, et chaque tentative ne sert qu’une fois. "
    "Rien n’a été modifié. Revenez à l’application d’où vous venez et recommencez.",
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Vary": "Accept-Language",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


@router.get(
    "/api/v1/oauth/apps",
    operation_id="list_oauth_apps",
    summary="List OAuth Apps",
    responses=responses(takes_input=False),
)
async def list_apps(session: DbReadSession, state: AppState, project_id: ProjectId) -> OAuthAppsRead:
    """Returns the project's OAuth apps, at most one for each platform."""
    return OAuthAppsRead(results=await apps.list_apps(session, state.settings, project_id))


@router.post(
    "/api/v1/oauth/apps",
    operation_id="create_oauth_app",
    summary="Create OAuth App",
    status_code=201,
    response_model=OAuthAppRead,
    responses=responses(409, 413, 429),
)
async def create_app(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    idempotent: Idempotent,
    body: OAuthAppCreate,
) -> Response:
    """Stores an OAuth client, with which people connect their calendars in the browser."""
    return await idempotent.once(
        lambda: apps.create_app(session, state.box, state.settings, project_id, body)
    )


@router.get(
    "/api/v1/oauth/apps/{app}",
    operation_id="get_oauth_app",
    summary="Get OAuth App",
    responses=responses(404, takes_input=False),
)
async def get_app(session: DbReadSession, state: AppState, project_id: ProjectId, app: App) -> OAuthAppRead:
    """Returns an OAuth app by its id or its platform."""
    return await apps.get_app(session, state.settings, project_id, app)


@router.patch(
    "/api/v1/oauth/apps/{app}",
    operation_id="update_oauth_app",
    summary="Update OAuth App",
    responses=responses(404, 413),
)
async def update_app(
    *, session: DbSession, state: AppState, project_id: ProjectId, app: App, body: OAuthAppUpdate
) -> OAuthAppRead:
    """Changes an app.

    A new `client_secret` is also used for all calendars that are connected with this client.
    """
    return await apps.update_app(
        session, state.box, state.settings, project_id=project_id, app=app, body=body
    )


@router.delete(
    "/api/v1/oauth/apps/{app}",
    operation_id="delete_oauth_app",
    summary="Delete OAuth App",
    response_class=Response,
    responses={**responses(404, takes_input=False), 200: {"description": "Deleted. The body is empty."}},
)
async def delete_app(session: DbSession, project_id: ProjectId, app: App) -> Response:
    """Deletes an app and its open sessions. Calendars that were connected with it keep working."""
    await apps.delete_app(session, project_id, app)
    return Response()


@router.post(
    "/api/v1/oauth/sessions",
    operation_id="create_oauth_session",
    summary="Create OAuth Session",
    status_code=201,
    response_model=OAuthSessionRead,
    responses=responses(409, 413, 429),
)
async def create_session(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    idempotent: Idempotent,
    body: OAuthSessionCreate,
) -> Response:
    """Starts a connection. Send the browser to `authorization_url`. It returns to your `redirect_uri`.

    The query then has `calendar_id`, or `error` and `error_description`. Before you use `calendar_id`, compare the
    calendar's `deduplication_key` with the person who is signed in in that browser.
    """
    return await idempotent.once(
        lambda: sessions.create_session(session, state.box, state.settings, project_id, body)
    )


def _failures() -> dict[int | str, dict[str, Any]]:
    return {
        302: {"description": "A redirect to the application's `redirect_uri`, or to the provider once more."},
        400: {
            "description": "A page for the person: the link is unknown, used or too old.",
            "content": {"text/html": {"schema": {"type": "string"}}},
        },
        **{code: response for code, response in responses().items() if code == 503},
    }


@router.get(
    "/oauth/{platform}/callback",
    operation_id="finish_oauth_session",
    summary="Finish OAuth Session",
    response_class=HTMLResponse,
    status_code=302,
    responses=_failures(),
)
async def finish_session(
    *,
    request: Request,
    state: AppState,
    platform: str,
    state_text: Annotated[str, Query(alias="state")] = "",
    code: str | None = None,
    error: str | None = None,
) -> Response:
    """Receives the browser when the provider sends it back."""
    known: dict[str, OAuthPlatform] = {"google": "google", "microsoft": "microsoft"}
    if platform not in known:
        return _page(request)
    try:
        callback = OAuthCallback(
            sessions=state.sessions, box=state.box, settings=state.settings, client=state.http
        )
        location = await callback.finish(known[platform], state=state_text, code=code, error=error)
    except StateRefused:
        return _page(request)
    return RedirectResponse(
        location, 302, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    )


def _page(request: Request) -> HTMLResponse:
    language = visitor_language(request)
    title = _TITLES[language]
    sentence = _SENTENCES[language].format(minutes=int(sessions.SESSION_FOR.total_seconds() // 60))
    text = (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{html.escape(title)}</h1><p>{html.escape(sentence)}</p></main></body></html>"
    )
    return HTMLResponse(text, 400, headers=_HEADERS)
