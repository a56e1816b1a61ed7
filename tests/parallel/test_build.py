"""Building a rank's part: the same weights as in one process, no memory but its own, and nothing left unset."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import buffer_shards, kept_part, shard_of
from deconattn.mixers import variant_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from tests.ranks import Ranks
from tests.train.test_own_state import BIASED

VOCABULARY, LENGTH = 97, 24
SIZES = "--hidden-size 40 --intermediate-size 72 --num-attention-heads 4 --num-key-value-heads 2 --qk-norm"
TEXT = torch.arange(LENGTH) % VOCABULARY


def flags_of(model: str, topology: str) -> tuple[TrainingFlags, ModelConfig]:
    words = f"--data none {SIZES} --global-batch-size 12 --micro-batch-size 1 --seq-len {LENGTH} --precision fp32"
    flags = parse_training_flags([*words.split(), *model.split(), *topology.split()])
    return flags, model_config(flags.model, VOCABULARY, LENGTH)


def part_of(flags: TrainingFlags, config: ModelConfig) -> CausalLM:
    """This rank's part, filled."""
    from deconattn.parallel.topology import Topology
    from deconattn.train.engine import empty_model

    model = empty_model(config, flags, Topology.create(flags.engine.tp, flags.engine.pp))
    initialize(model, 5, TEXT)
    return model


@contextmanager
def memory_of_nan() -> Iterator[None]:
    """Memory that nothing was written to is NaN, and the largest number of integers."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def compare(model: str, topology: str) -> None:
    """On every rank: each element that it keeps is that of a model which knows no ranks."""
    flags, config = flags_of(model, topology)
    with memory_of_nan():
        part = part_of(flags, config)
    whole = CausalLM(config)
    initialize(whole, 5, TEXT)
    theirs, cuts = whole.canonical_parameters(), buffer_shards(part)
    dtype = torch.bfloat16 if flags.engine.precision == "bf16" else torch.float32
    for name, parameter in part.canonical_parameters().items():
        shard, kept, value = shard_of(parameter), kept_part(parameter), theirs[name].detach()
        value = (shard.take(value) if shard else value).to(dtype)
        assert kept.shape == value.shape, name
        assert torch.equal(kept.memory, value.flatten()[kept.start : kept.stop]), name
        if flags.engine.zero_stage == 3:
            padding = parameter.ds_tensor[len(kept.memory) :]  # type: ignore[attr-defined]
            assert parameter.numel() == 0 and not padding.any(), name
    buffers = dict(whole.named_buffers())
    for name, buffer in part.named_buffers():
        shard = cuts.get(name)
        assert torch.equal(buffer, shard.take(buffers[name]) if shard else buffers[name]), name


@pytest.fixture(scope="module")
def every_variant(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Flags of a model with a layer of each variant, and one of a third party that draws, reads and places tensors."""
    drawn = 'torch.full((1,), torch.rand(1, device="cpu").item(), device="cpu")'
    plugin = tmp_path_factory.mktemp("plugin") / "awkward.py"
    plugin.write_text(BIASED.replace('"biased"', '"awkward"').replace("torch.rand(1)", drawn))
    ours = [name for name in variant_names() if name in OURS]
    return f"--plugin {plugin} --num-hidden-layers {len(ours) + 1} --pattern {','.join([*ours, 'awkward'])}"


OURS = ("standard", "mlp", "approximate", "nonapproximate", "rndemb", "fixedseq", "staticemb")
WORLDS = {
    2: ("--tp 2", "--pp 2 --tie-embeddings", "--zero 3 --precision bf16", "--zero 2 --precision bf16"),
    3: ("--zero 3", "--pp 3"),  # sizes that the ranks do not divide
    4: ("--tp 2 --pp 2", "--tp 2 --zero 3 --tie-embeddings", "--tp 4", "--zero 3"),
}


@pytest.mark.parametrize("world", [pytest.param(size, marks=pytest.mark.slow) if size > 2 else size for size in WORLDS])
def test_weights_are_those_of_one_process(ranks: Callable[[int], Ranks], world: int, every_variant: str) -> None:
    for topology in WORLDS[world]:
        ranks(world)(compare, model=every_variant, topology=topology)


class Living(TorchDispatchMode):
    """Bytes of the tensors that live, and the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.now += size
            self.most = max(self.most, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def measure(model: str, topology: str) -> dict[str, int]:
    """Bytes on the rank that had most: while building, afterwards, and of the largest whole tensor."""
    flags, config = flags_of(model, topology)
    with Living() as living:
        part = part_of(flags, config)
    held = sum(kept_part(parameter).memory.nbytes for parameter in part.parameters())
    with torch.device("meta"):
        tensors = [*CausalLM(config).parameters()]
    mine = torch.tensor([living.most, held])
    torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
    most, held = mine.tolist()
    return {
        "most": most,
        "held": held,
        "whole": sum(tensor.nbytes for tensor in tensors),
        "largest": max(tensor.nbytes for tensor in tensors),
    }


@pytest.mark.parametrize(
    ("world", "topology", "share"),
    [
        (2, "--zero 3", 2),
        (2, "--tp 2", 2),
        pytest.param(3, "--zero 3", 3, marks=pytest.mark.slow),
        pytest.param(4, "--tp 2 --pp 2", 3.5, marks=pytest.mark.slow),
        pytest.param(4, "--tp 2 --zero 3", 4, marks=pytest.mark.slow),
    ],
)
def test_a_rank_holds_its_part_and_one_tensor(
    ranks: Callable[[int], Ranks], world: int, topology: str, share: float
) -> None:
    bytes_of = ranks(world)(
        measure, model="--num-hidden-layers 8 --pattern uniform --variant standard", topology=topology
    )
    assert bytes_of["held"] < 1.05 * bytes_of["whole"] / share
    assert bytes_of["held"] <= bytes_of["most"] < bytes_of["held"] + bytes_of["largest"] + 4096
