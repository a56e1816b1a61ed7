"""A world of one, which agreements need."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def world_of_one(process_group: None) -> None:
    """Every test here may build a teacher in its own process."""
