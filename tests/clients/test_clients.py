"""Clients that are generated from the served OpenAPI document, used against a real server.

`make test-clients` installs the generators, in folders of their own beside this file, and runs this.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.core.http import httpx
from tests.conftest import TestProject
from tests.fakes.server import serve

HERE = Path(__file__).parent
TOOLS = HERE / ".tools" / "bin"
NODE_MODULES = HERE / "node_modules"

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(300),
    pytest.mark.settings(allow_private_network_targets=True),
]


@pytest.fixture
async def base_url(app: Any):
    async with serve(app, lifespan="off") as url:
        yield url


@pytest.fixture
async def document(base_url: str, tmp_path: Path) -> Path:
    """The served document, in a file."""
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{base_url}/openapi.json")
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(response.json()))
    return file


async def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"{command[0]} ended with {process.returncode}:\n{output.decode()}"
    return output.decode()


@pytest.mark.skipif(not TOOLS.exists(), reason="`make test-clients` installs openapi-python-client first")
async def test_a_python_client(base_url: str, document: Path, project: TestProject, tmp_path: Path) -> None:
    await _run(
        TOOLS / "openapi-python-client", "generate", "--path", document, "--meta", "none", "--fail-on-warning",
        "--config", HERE / "generator.yaml", "--output-path", tmp_path / "calbridge_client",
        cwd=tmp_path,
    )  # fmt: skip
    await _run(
        TOOLS / "python", HERE / "client.py",
        cwd=tmp_path, PYTHONPATH=str(tmp_path), API_URL=base_url, API_KEY=project.api_key,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("node") is None, reason="node is missing: install Node.js 20 or newer")
@pytest.mark.skipif(not NODE_MODULES.exists(), reason="`make test-clients` installs openapi-typescript first")
async def test_a_typescript_client(
    base_url: str, document: Path, project: TestProject, tmp_path: Path
) -> None:
    for name in ("client.ts", "tsconfig.json", "package.json"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    programs = NODE_MODULES / ".bin"
    await _run(programs / "openapi-typescript", document, "--output", "schema.d.ts", cwd=tmp_path)
    await _run(programs / "tsc", "--project", ".", cwd=tmp_path)
    await _run("node", "out/client.js", cwd=tmp_path, API_URL=base_url, API_KEY=project.api_key)
