"""Commands run in an empty folder, without the settings of the environment."""

import pytest


@pytest.fixture(autouse=True)
def _clean(clean_environment):
    """Commands run in an empty folder, without the settings of whoever runs the tests."""
    return clean_environment
