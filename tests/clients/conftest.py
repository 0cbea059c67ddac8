"""Clients of others are installed when their first test runs, which takes its time."""

from pathlib import Path

import pytest

CLIENT_S_MAX = 1_200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of this folder the time to install what they drive."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(CLIENT_S_MAX))
