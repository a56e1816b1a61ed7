"""Kernels are forced: where one cannot run, its test fails, in place of testing what takes its place."""

import pytest


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECONATTN_BACKEND", "triton")
