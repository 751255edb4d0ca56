"""A Chromium that reaches this machine alone, and the application on loopback."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from tests.fakes.server import serve

_CHROMIUM = next((p for p in ("/usr/bin/chromium", shutil.which("chromium")) if p and Path(p).exists()), None)
_MISSING = [
    name
    for name, is_there in (
        ("the package playwright", importlib.util.find_spec("playwright") is not None),
        ("/usr/bin/chromium", _CHROMIUM is not None),
    )
    if not is_there
]

NEEDS_CHROMIUM = pytest.mark.skipif(
    bool(_MISSING), reason=f"`make test-browser` needs {' and '.join(_MISSING)}: install it first"
)
# No other host has an address, whatever a page asks for.
_ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where screenshots go: BROWSER_SCREENSHOTS, to be looked at, or a temporary folder."""
    folder = Path(os.environ.get("BROWSER_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
async def base_url(app):
    async with serve(app, lifespan="off") as url:
        yield url


@pytest.fixture
async def browser():
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox", _ALONE])
        yield chromium
        await chromium.close()
