"""Fixtures of tests that start trainings."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def world_of_one(process_group: None) -> None:
    """The run that others are compared with is trained in the test's own process."""
