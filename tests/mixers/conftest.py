"""The third party's variant, registered for these tests alone."""

from collections.abc import Iterator

import pytest

from deconattn.mixers import register, registry
from tests.mixers.models import ThirdParty


@pytest.fixture(scope="module", autouse=True)
def third_party() -> Iterator[None]:
    before = dict(registry._REGISTRY)
    register("thirdparty")(ThirdParty)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)
