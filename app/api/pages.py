"""Lists: {"next", "previous", "results"} with absolute links, and their common query parameters.

See docs/reference/http-api.md, "Lists".
"""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator
from starlette.datastructures import URL

from app.api.deps import ProjectId
from app.api.schemas import InputTime
from app.core.errors import BadQuery
from app.core.pagination import Cursor, Page

Item = TypeVar("Item")

ShortText = Annotated[str, Field(max_length=1024)]

# Attendee's clients send these parameters. They have no effect there either.
_IGNORED = frozenset({"limit", "format"})
_NO_FILTERS = frozenset({"cursor", "page_size"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ListQuery(BaseModel):
    """The query of a list. Unknown names are refused, since a misspelt filter would return everything."""

    model_config = ConfigDict(extra="forbid")

    cursor: ShortText | None = Field(
        default=None,
        description="The cursor of a `next` or `previous` link.",
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]*$"},
    )
    page_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="The size of a page. A value above the list's own page size is reduced to it.",
    )

    _finds_nothing: bool = PrivateAttr(default=False)

    @model_validator(mode="wrap")
    @classmethod
    def _given(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, Mapping):
            return handler(value)
        given = {}
        finds_nothing = False
        for name, text in value.items():
            if "\x00" in name or (isinstance(text, str) and "\x00" in text):
                raise ValueError("NUL characters are not allowed.")
            field = cls.model_fields.get(name)
            if name in _IGNORED or (name in _NO_FILTERS and text == ""):
                continue
            if isinstance(text, list) and field is not None:
                items = [item for item in text if item != ""]
                finds_nothing = finds_nothing or bool(text and not items)
                given[name] = items
            elif text == "" and field is not None and _can_be_without(field.annotation):
                finds_nothing = True
            else:
                given[name] = text
        query = handler(given)
        query._finds_nothing = finds_nothing  # noqa: SLF001 - an attribute of this class
        return query

    @property
    def finds_nothing(self) -> bool:
        """Whether a filter has an empty value, which no row matches."""
        return self._finds_nothing

    def rows_of(self, page_size: int) -> int:
        """Return how many rows a page has. `page_size`: the list's own page size."""
        return min(self.page_size or page_size, page_size)


async def _refuse_query(request: Request, _project_id: ProjectId) -> None:
    unknown = sorted(set(request.query_params) - _IGNORED)
    if unknown:
        raise BadQuery(f"{unknown[0]}: Unknown query parameter.")


# For an operation with a body and without a query: {"live": true} belongs into the body.
NoQuery = Depends(_refuse_query)


def _can_be_without(annotation: Any) -> bool:
    """Whether such a field may be empty in a query, which then finds nothing.

    An empty time or ordering is an error.
    """
    return annotation != (InputTime | None) and type(None) in getattr(annotation, "__args__", ())


class PageRead(BaseModel, Generic[Item]):
    """A page of a list."""

    next: str | None = Field(description="The URL of the next page. Null on the last page.")
    previous: str | None = Field(description="The URL of the previous page. Null on the first page.")
    results: list[Item]


def page_links(request: Request, page: Page[Any]) -> dict[str, str | None]:
    """Return {"next", "previous"}: the request's URL with the cursors of the page.

    If the request came to the host of APP_URL, the links have APP_URL's scheme and port. Behind a TLS proxy, the request
    itself does not have them.
    """
    url = _as_seen_outside(request.url, request.app.state.calbridge.settings.app_url)
    return {"next": _link(url, page.next), "previous": _link(url, page.previous)}


def _as_seen_outside(url: URL, app_url: str) -> URL:
    outside = urlsplit(app_url)
    default = _DEFAULT_PORTS.get(outside.scheme)
    try:
        port = url.port
    except ValueError:  # the Host header is not a host
        return url
    is_ours = url.hostname == outside.hostname and (port or default) == (outside.port or default)
    return url.replace(scheme=outside.scheme, netloc=outside.netloc) if is_ours else url


def _link(url: URL, cursor: Cursor | None) -> str | None:
    return None if cursor is None else str(url.include_query_params(cursor=cursor.encode()))
