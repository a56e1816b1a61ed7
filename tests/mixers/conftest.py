"""The third party's variant, registered for these tests alone."""

from collections.abc import Iterator

import pytest

from deconattn.mixers import register, registry


@pytest.fixture(scope="module", autouse=True)
def third_party() -> Iterator[None]:
    from tests.mixers.models import ThirdParty  # only now: its list of variants has those of --plugin, once configured

    before = dict(registry._REGISTRY)
    register("thirdparty")(ThirdParty)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)
