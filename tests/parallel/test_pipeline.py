"""Documents in a pipeline: each stage has the offsets of the micro-batch that it is at."""

from collections.abc import Callable
from typing import Any

import torch

from tests.ranks import Ranks

FLAGS = (
    "--hidden-size 16 --intermediate-size 32 --num-hidden-layers 4 --num-attention-heads 2 --seq-len 32 "
    "--global-batch-size 8 --micro-batch-size 2 --steps 1 --precision fp32 --pp 2 --doc-mask "
    "--pattern rndemb,rndemb,standard,standard"
)


def offsets_in_stages() -> list[list[list[int]]]:
    """Each stage's offsets in the order of the passes of a step and a validation, after a look at the ids."""
    from benchmarks.parity import VOCABULARY, sample_batch
    from deconattn.config.command_line import parse_training_flags
    from deconattn.config.flags import model_config
    from deconattn.model.init import initialize
    from deconattn.ops.documents import Documents
    from deconattn.parallel.build import build_model
    from deconattn.parallel.topology import Topology
    from deconattn.train.engine import Engine

    flags = parse_training_flags(FLAGS.split())
    topology = Topology.create(1, 2)
    model = build_model(model_config(flags.model, VOCABULARY, flags.data.seq_len), topology, False)
    initialize(model, 0, torch.arange(flags.data.seq_len))
    engine = Engine(model, flags, topology)
    context, seen = model.model.context, []

    def noted(*arguments: Any) -> Any:
        made = context(*arguments)
        given, own = made.documents.cumulative_lengths, Documents(made.documents.ids, made.documents.position_ids)
        assert torch.equal(given.unique(), own.cumulative_lengths)
        seen.append(given.tolist())
        return made

    model.model.context = noted
    batches = [sample_batch(flags, range(start, start + 2)) for start in range(0, 8, 2)]
    engine.train_step(batches, 1e-3)
    engine.evaluate(batches)
    engine.destroy()
    everybody: list[Any] = [None, None]
    torch.distributed.all_gather_object(everybody, seen)
    return everybody


def test_each_stage_has_its_micro_batchs_offsets(ranks: Callable[[int], Ranks]) -> None:
    first, last = ranks(2)(offsets_in_stages)
    assert len(first) == len(last) == 8 and first[:4] == first[4:]
    assert [offsets[:65] for offsets in first] == [offsets[:65] for offsets in last]
    assert len({tuple(offsets) for offsets in first}) == 4
