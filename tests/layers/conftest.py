"""Fixtures of the model's tests."""

from tests.model.conftest import tiny_config  # noqa: F401  (a fixture)
