"""The callback of OAuth sessions: redeeming the code and connecting the calendar.

calbridge sees the browser for the first time here, so it cannot know who uses it. The application checks that: before
it uses `calendar_id`, it compares the calendar's `deduplication_key` or `metadata` with the person who is signed in in
that browser (docs/guide.md).

No transaction is open during a call to the provider. If the process dies in between, the state is used up and the
person starts again.
"""

from dataclasses import dataclass

import structlog

from app.api.not_found import CalendarNotFound
from app.calendars.account import connect_account, reconnect_account
from app.calendars.errors import DeduplicationKeyTaken, OtherAccount
from app.calendars.schemas import ProviderCalendarCreate
from app.calendars.service import set_metadata
from app.core.crypto import SealBroken, SecretBox, sha256_hex
from app.core.db import Session, Sessions, transaction
from app.core.http import httpx
from app.credentials.account import Account
from app.models import OAuthApp, OAuthSession
from app.oauth import flow, repository
from app.oauth.apps import open_client
from app.oauth.errors import StateRefused
from app.oauth.flow import Client, FlowFailed, Granted
from app.oauth.schemas import OAuthPlatform
from app.oauth.sessions import open_session, other_platform, session_context
from app.schedule import request_sync
from app.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Result:
    """A connected calendar, or with `retry_url` the provider's page that asks the person once more."""

    calendar_id: str = ""
    retry_url: str | None = None


class OAuthCallback:
    """Finishes OAuth sessions."""

    def __init__(
        self, *, sessions: Sessions, box: SecretBox, settings: Settings, client: httpx.AsyncClient
    ) -> None:
        self._sessions = sessions
        self._box = box
        self._settings = settings
        self._http = client

    async def finish(
        self, platform: OAuthPlatform, *, state: str, code: str | None, error: str | None
    ) -> str:
        """Redeem the code and connect the calendar; return where to send the browser. Raises StateRefused.

        All other failures are reported to the application, in the query of the session's redirect_uri.
        """
        used, app = await self._use_session(platform, state)
        try:
            result = await self._connect(used, app, code=code, error=error)
        except FlowFailed as err:
            log.info("oauth_session.failed", project_id=used.project_id, platform=platform, error=err.error)
            query = {"error": err.error, "error_description": err.description}
            return flow.with_query(used.redirect_uri, query)
        if result.retry_url is not None:
            return result.retry_url
        return flow.with_query(used.redirect_uri, {"calendar_id": result.calendar_id})

    async def _use_session(self, platform: OAuthPlatform, state: str) -> tuple[OAuthSession, OAuthApp]:
        """Use up the state in its own transaction, so that it works only once. Raises StateRefused."""
        async with transaction(self._sessions) as session:
            used = await repository.use_session(session, sha256_hex(state), platform)
            if used is None:
                raise StateRefused
            app = await repository.find_app(session, used.project_id, used.app_id)
        # The application may have removed the address from its list in the meantime.
        if app is None or used.redirect_uri not in app.redirect_uris:
            raise StateRefused
        return used, app

    async def _connect(
        self, used: OAuthSession, app: OAuthApp, *, code: str | None, error: str | None
    ) -> _Result:
        """Redeem the code and write the calendar. Raises FlowFailed."""
        platform: OAuthPlatform = used.platform  # type: ignore[assignment] # checked by the table
        if error is not None:
            raise flow.refused_by_person(platform, error)
        if not code:
            raise FlowFailed(
                "invalid_request", f"{flow.provider_name(platform)} sent neither a code nor an error."
            )
        try:
            client = open_client(self._box, self._settings, app)
            verifier = self._box.open(session_context(used.state_sha256), used.sealed)["code_verifier"]
        except SealBroken:
            raise FlowFailed("server_error", "The service cannot decrypt what it stored.") from None
        granted = await flow.redeem_code(
            self._settings, self._http, client, code=code, code_verifier=verifier
        )
        account = await flow.load_account(self._settings, self._http, platform, granted.access_token)
        # Another request may take the deduplication key between the look-up and the insert. The second round then
        # reconnects that calendar.
        for _ in range(2):
            try:
                async with transaction(self._sessions) as session:
                    return await self._write(session, used, client, granted, account)
            except (DeduplicationKeyTaken, CalendarNotFound):
                continue
            except OtherAccount:
                raise _other_account(platform) from None
        raise FlowFailed("temporarily_unavailable", "The calendar was changed at the same time. Try again.")

    async def _write(
        self, session: Session, used: OAuthSession, client: Client, granted: Granted, account: Account
    ) -> _Result:
        """Create or reconnect the calendar.

        Raises FlowFailed, DeduplicationKeyTaken, CalendarNotFound, OtherAccount.
        """
        holder = None
        if used.deduplication_key is not None:
            holder = await repository.find_holder(session, used.project_id, used.deduplication_key)
        if holder is not None and holder.platform != client.platform:
            raise FlowFailed("invalid_request", other_platform(holder.platform))
        if granted.refresh_token is None:
            return await self._keep_grant(session, used, client, holder, account)
        if holder is not None:
            await reconnect_account(
                session,
                self._box,
                used.project_id,
                holder.id,
                client_id=client.client_id,
                secrets={"client_secret": client.client_secret, "refresh_token": granted.refresh_token},
                account=account,
                metadata=used.metadata_,
                only_same_account=used.same_account,
            )
            return _Result(holder.id)
        body = ProviderCalendarCreate(
            platform=client.platform,
            client_id=client.client_id,
            client_secret=client.client_secret,
            refresh_token=granted.refresh_token,
            platform_uuid=used.platform_uuid,
            metadata=used.metadata_,
            deduplication_key=used.deduplication_key,
        )
        return _Result(await connect_account(session, self._box, used.project_id, body, account=account))

    async def _keep_grant(
        self,
        session: Session,
        used: OAuthSession,
        client: Client,
        holder: repository.Holder | None,
        account: Account,
    ) -> _Result:
        """Finish without a new refresh token.

        The stored one stays in use only if it belongs to the same account.

        Raises FlowFailed, OtherAccount.
        """
        is_same = holder is not None and account.is_known_to_be(holder.account)
        if holder is not None and not is_same and used.same_account:
            raise OtherAccount
        keeps = holder is not None and holder.state == "connected" and holder.client_id == client.client_id
        if holder is None or not is_same or not keeps:
            return await self._ask_again(session, used, client)
        if used.metadata_ is not None:
            await set_metadata(session, holder.id, used.metadata_)
        await request_sync(session, holder.id)
        return _Result(holder.id)

    async def _ask_again(self, session: Session, used: OAuthSession, client: Client) -> _Result:
        """Send the browser to the provider's consent screen. Raises FlowFailed if that was already done."""
        if used.consent_asked:
            name = flow.provider_name(client.platform)
            raise FlowFailed(
                "invalid_grant",
                f"{name} gave no refresh token. Remove the app's access in the {name} account, and connect again.",
            )
        url, _ = await open_session(
            session,
            self._box,
            self._settings,
            client,
            ask_consent=True,
            login_hint=used.login_hint,
            values={
                "project_id": used.project_id,
                "app_id": used.app_id,
                "platform": used.platform,
                "redirect_uri": used.redirect_uri,
                "deduplication_key": used.deduplication_key,
                "metadata_": used.metadata_,
                "platform_uuid": used.platform_uuid,
                "same_account": used.same_account,
            },
        )
        return _Result(retry_url=url)


def _other_account(platform: OAuthPlatform) -> FlowFailed:
    name = flow.provider_name(platform)
    return FlowFailed(
        "account_mismatch",
        f"The calendar is connected with another {name} account. Connect again and choose that account.",
    )
