"""Fixed streams held over a step in the engine: as in one process in float64, and told of where they are not held."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.parity import MIXED, VOCABULARY, Topology
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.data import Batch
from deconattn.mixers import registry
from deconattn.train import fixed_streams
from deconattn.train.fixed_streams import StreamRunner
from tests.parallel.test_parity import check
from tests.ranks import Ranks
from tests.train.jobs import run_job

ALL = next(iter(MIXED.values()))
FIXED = "--pattern fixedseq,rndemb,rndemb,fixedseq"
SLOW = [
    (2, "--tp 2 --sequence-parallel", ALL),
    (2, "--cp 2", ALL),
    (4, "--cp 4 --zero 3", FIXED),
    *((2, f"--zero {stage}", FIXED) for stage in range(4)),
    (2, "--zero 3 --recompute layer", ALL),
    (2, "--tp 2 --sequence-parallel --recompute layer", FIXED),
    (2, "--precision bf16 --zero 1", FIXED),
    (2, "--precision bf16 --zero 3", FIXED),
    (4, "--tp 2 --zero 2", ALL),
    (4, "--tp 2 --sequence-parallel --zero 3", ALL),
]


# On one rank ZeRO-3 has the same sums of gradients, which a step without forgetting them would add to the next one's.
@pytest.mark.parametrize(
    ("world_size", "flags", "model"),
    [(1, "--zero 3", FIXED), *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)],
)
def test_as_one_process(ranks: Callable[[int], Ranks], world_size: int, flags: str, model: str) -> None:
    check(ranks, Topology(flags, world_size, flags), f"{model} --micro-batch-size 1")


def runner(flags: str, **topology: int) -> StreamRunner:
    words = f"--hidden-size 32 --num-hidden-layers 2 --num-attention-heads 4 --seq-len 32 --global-batch-size 4 {flags}"
    parsed = parse_training_flags(words.split())
    place: Any = SimpleNamespace(**{"pp_size": 1, "tp_size": 1, "cp_size": 1, "dp_size": 1} | topology)
    return StreamRunner(model_config(parsed.model, VOCABULARY, 32), parsed, place, None)


def held(runner: StreamRunner, micro_batches: int = 3) -> list[bool | None]:
    """Of each micro-batch of a step whether it is the last to those that hold the streams; None: it carries them."""
    left = iter(range(micro_batches - 1, -1, -1))
    passes = runner.beside([Batch(torch.zeros(0), torch.zeros(0))] * micro_batches, lambda: next(left) == 0)
    return [None if run is None else run.last for _, run in passes]


def test_where_they_are_not_held_a_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--micro-batch-size 1 --variant fixedseq"
    assert runner(small).report() == [] and held(runner(small)) == [False, False, True]
    assert held(runner(small), 1) == [None]
    assert held(runner(f"{small} --variant mlp")) == [None] * 3
    assert runner("--variant fixedseq --micro-batch-size 4", pp_size=2).report() == []
    [line] = runner(small, pp_size=2).report()
    assert line == "the fixed stream runs anew with each of 4 micro-batches: pipeline stages send it on with each"
    assert held(runner(small, pp_size=2)) == [None] * 3
    monkeypatch.setattr(fixed_streams.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fixed_streams.torch.cuda, "mem_get_info", lambda: (0, 2**16))
    [line] = runner(small).report()
    assert line.endswith("to hold it for a step takes 0.0 GiB, more than a tenth of the GPU's memory")


DRAWING = '''
"""An MLP that draws in training, or does not."""

import torch
from deconattn.mixers import Decoding, register
from deconattn.mixers.mlp import MLP


@register("drawing")
class Drawing(MLP):
    decoding = Decoding()

    def attention_map(self, hidden, static, context):
        return None

    def forward(self, hidden, static, context):
        return torch.nn.functional.dropout(super().forward(hidden, static, context), 0.1, self.training and DRAWS)
'''


@pytest.fixture(params=[False, True], ids=["draws nothing", "draws"])
def drawing(small: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[list[str], bool]]:
    before = dict(registry._REGISTRY)
    plugin = tmp_path / "drawing.py"
    plugin.write_text(DRAWING.replace("DRAWS", str(request.param)))
    yield [*small, "--plugin", str(plugin), "--pattern", "drawing,fixedseq", "--micro-batch-size", "1"], request.param
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


def test_a_plugin_on_the_streams_way_is_tried(
    drawing: tuple[list[str], bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, draws = drawing
    trainer = run_job([*flags, "--steps", "1", "--save", str(tmp_path / "run")])
    streams = trainer.engine.streams
    assert not streams.untried and (held(streams) == [None] * 3) == draws
    said = "anew with each of 4 micro-batches: a variant draws random numbers or lets rows of a batch meet on its way"
    assert (said in " ".join(capsys.readouterr().err.split())) == draws
    trainer.engine.destroy()
