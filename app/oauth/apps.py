"""OAuth apps: the clients that projects have registered at Google and Microsoft."""

from app.core.crypto import SecretBox
from app.core.db import AnySession, ReadSession, Session
from app.core.errors import InvalidFields
from app.core.ids import new_id
from app.credentials.service import put_client_secret
from app.models import OAuthApp
from app.oauth import flow, repository
from app.oauth.errors import OAuthAppNotFound
from app.oauth.flow import Client
from app.oauth.schemas import OAuthAppCreate, OAuthAppRead, OAuthAppUpdate
from app.settings import Settings


async def list_apps(session: ReadSession, settings: Settings, project_id: str) -> list[OAuthAppRead]:
    return [_read(settings, app) for app in await repository.list_apps(session, project_id)]


async def get_app(session: AnySession, settings: Settings, project_id: str, app: str) -> OAuthAppRead:
    """Return the app with this id or for this platform. Raises OAuthAppNotFound."""
    found = await repository.find_app(session, project_id, app)
    if found is None:
        raise OAuthAppNotFound
    return _read(settings, found)


async def create_app(
    session: Session, box: SecretBox, settings: Settings, project_id: str, body: OAuthAppCreate
) -> OAuthAppRead:
    """Store an app. Raises InvalidFields if the project already has one for this platform."""
    app_id = new_id("oapp")
    inserted = await repository.insert_app(
        session,
        {
            "id": app_id,
            "project_id": project_id,
            "platform": body.platform,
            "client_id": body.client_id,
            "sealed": box.seal(app_context(app_id), {"client_secret": body.client_secret}),
            "redirect_uris": body.redirect_uris,
        },
    )
    if not inserted:
        sentence = "This project has an OAuth app for this platform: change it with PATCH."
        raise InvalidFields.one("platform", sentence)
    return await get_app(session, settings, project_id, app_id)


async def update_app(
    session: Session, box: SecretBox, settings: Settings, *, project_id: str, app: str, body: OAuthAppUpdate
) -> OAuthAppRead:
    """Change an app. A new secret is also used for all calendars that are connected with this client.

    Raises OAuthAppNotFound.
    """
    stored = await repository.lock_app(session, project_id, app)
    if stored is None:
        raise OAuthAppNotFound
    values = body.model_dump(exclude_unset=True)
    secret = values.pop("client_secret", None)
    if secret is not None:
        values["sealed"] = box.seal(app_context(stored.id), {"client_secret": secret})
    if values:
        await repository.update_app(session, stored.id, values)
    if secret is not None:
        client_id = values.get("client_id", stored.client_id)
        await put_client_secret(
            session, box, project_id=project_id, platform=stored.platform, client_id=client_id, secret=secret
        )
    return await get_app(session, settings, project_id, stored.id)


async def delete_app(session: Session, project_id: str, app: str) -> None:
    """Delete an app. Calendars that were connected with it keep working. Raises OAuthAppNotFound."""
    stored = await repository.lock_app(session, project_id, app)
    if stored is None:
        raise OAuthAppNotFound
    await repository.delete_app(session, stored.id)


def _read(settings: Settings, app: OAuthApp) -> OAuthAppRead:
    return OAuthAppRead(
        id=app.id,
        platform=app.platform,
        client_id=app.client_id,
        redirect_uris=app.redirect_uris,
        callback_url=flow.callback_url(settings, app.platform),  # type: ignore[arg-type] # checked by the table
        created_at=app.created_at,
        updated_at=app.updated_at,
    )


def app_context(app_id: str) -> str:
    return f"oauth_apps:{app_id}"


def open_client(box: SecretBox, settings: Settings, app: OAuthApp) -> Client:
    """Return the OAuth client with its secret. Raises SealBroken."""
    return Client(
        platform=app.platform,  # type: ignore[arg-type] # checked by the table
        client_id=app.client_id,
        client_secret=box.open(app_context(app.id), app.sealed)["client_secret"],
        callback_url=flow.callback_url(settings, app.platform),  # type: ignore[arg-type] # checked by the table
    )
