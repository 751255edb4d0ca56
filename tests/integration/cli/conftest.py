"""Every command of these tests runs in an empty folder, without the settings of the environment."""

import pytest


@pytest.fixture(autouse=True)
def _clean(clean_environment):
    return clean_environment
