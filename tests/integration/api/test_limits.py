"""How many POSTs an API key may send."""

import asyncio

import httpx
import pytest
from redis.asyncio import Redis

from app.core.db import transaction
from app.main import create_app
from app.projects.service import create_api_key

URL = "/api/v1/bots"
BODY = {"bot_name": "Notetaker", "meeting_url": "https://zoom.us/j/5551112222"}


async def posts(api, count, **options):
    responses = await asyncio.gather(*(api.post(URL, json=BODY, **options) for _ in range(count)))
    return sorted(response.status_code for response in responses)


@pytest.mark.settings(api_posts_per_minute=5)
async def test_posts_beyond_the_limit_have_to_wait(api, other_api, sessions, project) -> None:
    assert await posts(api, 8) == [201] * 5 + [429] * 3
    refused = await api.post(URL, json=BODY)
    assert (refused.status_code, list(refused.json())) == (429, ["error"])
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert (await api.post("/api/v1/webhooks", json={})).status_code == 429, "all POSTs count"
    assert len((await api.get(URL)).json()["results"]) == 5, (
        "reading is not limited, and nothing more was made"
    )
    assert await posts(other_api, 1) == [201]
    async with transaction(sessions) as session:
        key = (await create_api_key(session, project.id, "another")).api_key
    assert await posts(api, 5, headers={"Authorization": f"Bearer {key}"}) == [201] * 5, (
        "each key has its own"
    )


@pytest.mark.settings(api_posts_per_minute=0)
async def test_zero_is_no_limit(api, redis_url) -> None:
    assert await posts(api, 3) == [201] * 3
    async with Redis.from_url(redis_url) as redis:
        assert [key async for key in redis.scan_iter("calbridge:api_posts*")] == []


@pytest.mark.settings(api_posts_per_minute=5, redis_url="redis://127.0.0.1:1/0")
async def test_without_redis_each_process_counts_for_itself(api) -> None:
    # Its windows begin with the minute: at the turn of one, one more may pass.
    assert await posts(api, 8) in ([201] * 5 + [429] * 3, [201] * 6 + [429] * 2)
    refused = await api.post(URL, json=BODY)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


@pytest.mark.settings(api_posts_per_minute=5)
async def test_the_count_is_shared_by_all_processes(api, app, settings, project) -> None:
    assert await posts(api, 5) == [201] * 5
    second = create_app(settings)
    headers = {"Authorization": f"Token {project.api_key}"}
    async with second.router.lifespan_context(second):
        transport = httpx.ASGITransport(second)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://testserver", headers=headers
        ) as other:
            assert await posts(other, 1) == [429]
