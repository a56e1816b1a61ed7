"""Whatever a variant draws from the global generators is drawn from the run's seed."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from deconattn.checkpoint.format import open_checkpoint
from deconattn.launch.preflight import checked_flags
from deconattn.mixers import registry
from deconattn.model.init import seed_generators
from deconattn.train.engine import Engine
from tests.train.conftest import losses, validation_losses
from tests.train.jobs import run_job

NOISY = '''
"""Standard attention with noise from every generator, in training or always."""

import random

import numpy
import torch

from deconattn.mixers import ProjectedMixer, register


@register("noisy")
class Noisy(ProjectedMixer):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("start", torch.cat([torch.tensor([random.random(), numpy.random.rand()]), torch.rand(1)]))

    def attention_map(self, hidden, static, context):
        queries, keys = self.queries_keys(hidden)
        scores = queries @ self.per_query_head(keys).transpose(-1, -2)
        return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf).softmax(-1)

    def forward(self, hidden, static, context):
        values = self.per_query_head(self.values(hidden))
        mixed = self.output(self.attention_map(hidden, static, context) @ values)
        if not self.training:
            return mixed
        return mixed * (random.random() + numpy.random.rand() + torch.rand(hidden.shape[-1]))

    @classmethod
    def forward_flops(cls, config, work):
        return cls.projection_flops(config, work.tokens) + 4 * work.tokens * work.length * config.query_size
'''


@pytest.fixture(params=["if not self.training"])
def noisy(small: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    before = dict(registry._REGISTRY)
    plugin = tmp_path / "noisy.py"
    plugin.write_text(NOISY.replace("if not self.training", request.param))
    yield [*small, "--plugin", str(plugin), "--variant", "noisy", "--eval-every", "2", "--save-every", "2"]
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


def scramble(seed: int) -> None:
    """Leave the generators as another process might have them."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize(
    "noisy", ["if not self.training", pytest.param("if False", marks=pytest.mark.slow)], indirect=True
)
def test_two_commands_draw_alike_and_so_does_a_resume(noisy: list[str], tmp_path: Path) -> None:
    for number, (name, stops) in enumerate((("one", []), ("two", []), ("cut", [1, 3, 4]))):
        run, begin = ["--save", str(tmp_path / name)], noisy
        for stop in stops:
            scramble(number + stop)
            run_job([f"stop={stop}", *begin, *run])
            begin = ["--resume"]
        scramble(number)
        run_job([*begin, *run])
    one = tmp_path / "one"
    for other in (tmp_path / "two", tmp_path / "cut"):
        assert losses(other) == losses(one)
        assert validation_losses(other) == validation_losses(one)
    assert len(validation_losses(one)) == 3
    starts = [open_checkpoint(tmp_path / name).weights()["model.layers.0.self_attn.start"] for name in ("one", "two")]
    assert torch.equal(*starts) and len(set(starts[0].tolist())) == 3
    run_job([*noisy, "--seed", "7", "--save", str(tmp_path / "other")])
    assert losses(tmp_path / "other") != losses(one)


def test_building_a_model_leaves_the_generators_alone(noisy: list[str]) -> None:
    from deconattn.config.flags import model_config
    from deconattn.model.causal_lm import CausalLM
    from deconattn.model.init import initialize

    flags = checked_flags(noisy)  # which tries the variant: noise in training is no fault
    model = CausalLM(model_config(flags.model, 512, 32))
    draws = []
    for fill in (False, True):
        scramble(3)
        if fill:
            initialize(model, 1)
        draws.append((random.random(), numpy.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]


def drawn(seed: int, name: str, dp_rank: int, pp_rank: int) -> tuple[float, float, float]:
    place = SimpleNamespace(
        flags=SimpleNamespace(optimization=SimpleNamespace(seed=seed)),
        topology=SimpleNamespace(dp_rank=dp_rank, pp_rank=pp_rank),
    )
    Engine.seed(place, name)  # type: ignore[arg-type]
    return random.random(), numpy.random.rand(), torch.rand(()).item()


def test_replicas_stages_steps_and_seeds_draw_apart() -> None:
    state = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        places = [
            (seed, f"step {step}", dp, pp) for seed in (1, 2) for step in (0, 1) for dp in (0, 1) for pp in (0, 1)
        ]
        draws = [drawn(*place) for place in places]
        assert draws == [drawn(*place) for place in places]
        for ours in zip(*draws, strict=True):
            assert len(set(ours)) == len(places)
        seed_generators(1, "a name")  # NumPy takes 32 bits of what may have 63
    finally:
        random.setstate(state[0])
        numpy.random.set_state(state[1])
        torch.set_rng_state(state[2])
