"""OAuth apps at the fakes, and a browser for their authorize pages over HTTP.

See docs/reference/http-api.md, "OAuth apps and sessions".
"""

import pytest

from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve
from tests.flows.oauth.browser import make_flow


@pytest.fixture
async def google(google_settings, fake_google, api, app):
    flow = await make_flow("google", fake_google[0], api, app)
    yield flow
    await flow.browser.aclose()


@pytest.fixture
async def fake_microsoft(settings):
    fake = FakeMicrosoft()
    async with serve(fake) as url:
        settings.microsoft_oauth_authorize_url = f"{url}/common/oauth2/v2.0/authorize"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        yield fake


@pytest.fixture
async def microsoft(fake_microsoft, api, app):
    flow = await make_flow("microsoft", fake_microsoft, api, app)
    yield flow
    await flow.browser.aclose()


@pytest.fixture(params=["google", "microsoft"])
def flow(request):
    return request.getfixturevalue(request.param)
