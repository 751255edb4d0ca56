"""List answers: {"next", "previous", "results"} with absolute links (contract 2), and what their queries share."""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.pagination import Cursor, Page

Item = TypeVar("Item")

ShortText = Annotated[str, Field(max_length=1024)]


class ListQuery(BaseModel):
    """The query of a list: unknown names are refused, a filter without a value counts as not given."""

    model_config = ConfigDict(extra="forbid")

    cursor: ShortText | None = Field(
        default=None,
        description="From a `next` or `previous` link.",
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]*$"},
    )

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for name, text in value.items():
            if "\x00" in name or (isinstance(text, str) and "\x00" in text):
                raise ValueError("NUL characters are not allowed.")
        return {name: text for name, text in value.items() if text != ""}


class PageRead(BaseModel, Generic[Item]):
    """A page of a list."""

    next: str | None = Field(description="The following page; null on the last one.")
    previous: str | None = Field(description="The page before; null on the first one.")
    results: list[Item]


def page_links(request: Request, page: Page[Any]) -> dict[str, str | None]:
    """{"next", "previous"}: this request's address with the page's cursors in place of its own."""
    return {"next": _link(request, page.next), "previous": _link(request, page.previous)}


def _link(request: Request, cursor: Cursor | None) -> str | None:
    return None if cursor is None else str(request.url.include_query_params(cursor=cursor.encode()))
