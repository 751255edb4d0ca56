"""The commands of docs/join-rules.md do what the page says, against the demo calendar of `make run`."""

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.core.http import httpx
from app.demo.api import PATH
from app.main import create_app
from tests.fakes.server import serve

PAGE = Path(__file__).parents[3] / "docs" / "join-rules.md"


async def paste(block: str, url: str, key: str) -> list[Any]:
    """What a shell says to a block of the page: the JSON documents that were printed."""
    block = block.replace("http://localhost:8000", url).replace("sleep 2", "true")
    shell = await asyncio.create_subprocess_exec(
        "sh",
        "-ec",
        block,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "KEY": key},
    )
    out, _ = await asyncio.wait_for(shell.communicate(), 30)
    assert shell.returncode == 0, block
    found, rest = [], out.decode()
    while rest.strip():
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


@pytest.fixture
async def demo(settings, project, worker):
    """The URL of a calbridge with the demo calendar, as `make run` starts it, and a client."""
    settings.demo_feed_url = "http://127.0.0.1/"  # for the route; the address is known below
    app = create_app(settings)
    async with serve(app) as url:
        settings.demo_feed_url = f"{url}{PATH}"
        headers = {"Authorization": f"Token {project.api_key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            body = {"platform": "ics", "feed_url": settings.demo_feed_url, "deduplication_key": "sample"}
            assert (await client.post("/api/v1/calendars", json=body)).status_code == 201
            yield url, client


async def until(condition: Any) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_the_commands_do_what_the_page_says(demo, project, sessions) -> None:
    url, client = demo
    preview, store, listing, never, remove = re.findall(
        r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )

    async def get(path: str) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        while path:
            page = (await client.get(path)).json()
            results += page["results"]
            path = page["next"]
        return results

    async def names() -> dict[str, int]:
        """How many scheduled bots there are for the events of each name."""
        events = {one["id"]: one for one in await get("/api/v1/calendar_events")}
        found: dict[str, int] = {}
        for bot in await get("/api/v1/bots?state=scheduled"):
            name = events[bot["calendar_event_id"]]["name"]
            found[name] = found.get(name, 0) + 1
        return found

    async def is_synced() -> bool:
        return len(await get("/api/v1/calendar_events")) >= 20

    await until(is_synced)
    if shutil.which("curl"):
        (shown,) = await paste(preview, url, project.api_key)
        assert {one["rule"] for one in shown["make"]} == {"customers"}
        assert 3 <= len(shown["make"]) <= 5
        assert shown["remove"] == []
        assert await names() == {}

        (stored,) = await paste(store, url, project.api_key)
        assert [rule["name"] for rule in stored["rules"]] == ["no stand-ups", "everything else"]

        async def has_bots() -> bool:
            return len(await names()) == 2

        await until(has_bots)
        before = await names()
        assert set(before) == {"Customer call", "Planning"}
        assert before["Customer call"] == len(shown["make"])
        (listed,) = await paste(listing, url, project.api_key)
        assert {bot["bot_name"] for bot in listed["results"]} == {"Notetaker"}

        (policy,) = await paste(never, url, project.api_key)
        assert policy["policy"] == "never"

        async def has_one_less() -> bool:
            return sum((await names()).values()) == sum(before.values()) - 1

        await until(has_one_less)
        await paste(remove, url, project.api_key)

        async def has_none() -> bool:
            return await names() == {}

        await until(has_none)
