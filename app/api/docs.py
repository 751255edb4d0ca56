"""The pages / and /docs.

All their files come from this server, since some installations have no internet access.
"""

import base64
import hashlib
import re
from pathlib import Path
from urllib.parse import quote

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

_FILES = Path(fastapi_offline.__file__).parent / "static"
_FILES_PATH = "/docs/files"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

# The icon shows a sheet of a calendar.
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect x="1" y="2" width="14" height="13" rx="2" '
    'fill="#fff" stroke="#1f5fbf"/><path d="M1 6V4a2 2 0 0 1 2-2h10a2 2 0 0 1 2 2v2z" fill="#1f5fbf"/>'
    '<path d="M4 9h3v3H4z" fill="#1f5fbf"/></svg>'
)

_router = APIRouter(include_in_schema=False)


@_router.get("/")
async def index(request: Request) -> RedirectResponse:
    """Redirect a browser at the base URL to the documentation."""
    return RedirectResponse(f"{_root(request)}/docs", status_code=302)


@_router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Return Swagger UI.

    Its policy allows connections to this server only, since people paste API keys here.
    """
    root = _root(request)
    page = get_swagger_ui_html(
        openapi_url=f"{root}{request.app.openapi_url}",
        title="calbridge API",
        swagger_js_url=f"{root}{_FILES_PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_FILES_PATH}/swagger-ui.css",
        swagger_favicon_url=f"data:image/svg+xml,{quote(_ICON)}",
        swagger_ui_parameters={"docExpansion": "none", "defaultModelsExpandDepth": 0},
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())
    page.headers["Referrer-Policy"] = "no-referrer"
    return page


def install_docs(app: FastAPI) -> None:
    """Add the pages and the files that they load."""
    app.include_router(_router)
    app.mount(_FILES_PATH, StaticFiles(directory=_FILES), name="docs-files")


def _root(request: Request) -> str:
    """Return the path under which a proxy serves this application. It is usually empty."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")


def _policy(html: str) -> str:
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in _INLINE_SCRIPT.findall(html)
    ]
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
