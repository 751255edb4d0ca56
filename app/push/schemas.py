"""Notifications that Microsoft Graph posts (docs/reference/microsoft.md, "Subscriptions")."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Notification(BaseModel):
    """One notification: of a change or, with `lifecycleEvent`, about the subscription itself."""

    model_config = ConfigDict(extra="ignore", strict=True)

    # Printable ASCII, as all ids of Graph are.
    subscription_id: Annotated[str, Field(alias="subscriptionId", pattern="^[!-~]{1,200}$")]
    client_state: Annotated[str | None, Field(alias="clientState", max_length=128)] = None
    lifecycle_event: Annotated[str | None, Field(alias="lifecycleEvent", max_length=64)] = None
