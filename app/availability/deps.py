"""The dependency of routes that read busy times from providers."""

from typing import Annotated

from fastapi import Depends, Request

from app.availability.live import LiveAccess


async def _live_access(request: Request) -> LiveAccess:
    access: LiveAccess = request.app.state.live_access
    return access


LiveAccessDep = Annotated[LiveAccess, Depends(_live_access)]
