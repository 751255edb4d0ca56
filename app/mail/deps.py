"""The dependency of routes that use La Suite Messages."""

from typing import Annotated

from fastapi import Depends, Request

from app.mail.lasuite.mailboxes import Messages


async def _messages(request: Request) -> Messages:
    messages: Messages = request.app.state.messages
    return messages


MessagesDep = Annotated[Messages, Depends(_messages)]
