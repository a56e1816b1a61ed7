"""Fixtures of stored models."""

from tests.generation.conftest import byte_level  # noqa: F401  (a fixture)
