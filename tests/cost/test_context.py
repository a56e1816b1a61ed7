"""What a cost model says of ranks that share sequences, against a run's own exchanges and against sums made by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.cost.activations import held_stream_bytes, layer_activations, p2p_bytes
from deconattn.cost.cluster import Cluster
from deconattn.cost.communication import stage_traffic
from deconattn.cost.context import context_elements
from deconattn.cost.job import Job
from deconattn.cost.memory import peak
from deconattn.cost.step_time import step_time
from deconattn.mixers import Mixer, mixer_class, variant_names
from deconattn.mixers.exchange import ContextExchange
from tests.cost.test_memory import SMALL, build_job
from tests.ranks import Ranks

H100 = Cluster.of("h100", 8, None, 5)
MODEL = (
    "--hidden-size 32 --intermediate-size 48 --num-hidden-layers 2 --num-attention-heads 8 --num-key-value-heads 4 "
    "--vocab-size 64 --seq-len 32 --precision fp32 --micro-batch-size 2"
)
SHAPES = [
    (2, "--cp 2 --global-batch-size 2"),
    (2, "--cp 2 --global-batch-size 6 --zero 1 --recompute layer"),
    (2, "--cp 2 --global-batch-size 4 --precision bf16 --zero 2 --recompute mixer"),
]
WIDER = [
    (4, "--cp 4 --global-batch-size 6 --zero 3"),
    (4, "--cp 2 --tp 2 --sequence-parallel --global-batch-size 4"),
    (4, "--cp 2 --tp 2 --sequence-parallel --global-batch-size 2 --recompute layer"),
    (4, "--cp 2 --pp 2 --zero 1 --global-batch-size 6"),
    (4, "--cp 2 --zero 1 --global-batch-size 8 --doc-mask"),
]


def one_step(arguments: list[str]) -> list[dict[str, int]]:
    """On every rank: a step through the engine; bytes sent in it by kind, of all ranks in order."""
    from deconattn.data import Batch
    from deconattn.dry_run.ledger import Ledger
    from deconattn.model.init import initialize
    from deconattn.parallel.topology import Topology
    from deconattn.train.engine import Engine, empty_model

    flags = parse_training_flags(arguments)
    length, rows = flags.data.seq_len, flags.optimization.micro_batch_size
    topology = Topology.create(flags.engine.tp, flags.engine.pp, flags.engine.cp)
    model = empty_model(model_config(flags.model, 1, length), flags, topology)
    initialize(model, 0, torch.arange(length))
    engine = Engine(model, flags, topology)
    fields = torch.zeros(4 if flags.data.doc_mask else 2, rows, length, dtype=torch.long)
    if flags.data.doc_mask:
        fields[2] = torch.arange(length)
    with Ledger() as ledger:
        ledger.know(topology)
        engine.train_step([Batch.of(fields)] * engine.accumulation_steps, 1e-3)
    engine.destroy()
    sent = {"stage": topology.pp_rank}
    for one, size in ledger.sent.items():
        sent[one.kind] = sent.get(one.kind, 0) + size
    found: list[dict[str, int]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, sent)
    return found


def check(ranks: Ranks, world_size: int, words: str) -> None:
    """Compare what every rank sends to share sequences with the cost model, to the byte."""
    flags = parse_training_flags(f"{MODEL} {words}".split())
    job = Job.of(model_config(flags.model, 1, flags.data.seq_len), flags, world_size, gpu=False)
    for sent in ranks(one_step, arguments=f"{MODEL} {words}".split()):
        predicted = stage_traffic(job, sent["stage"])
        assert sent.get("context", 0) == predicted.context, words
        if not held_stream_bytes(job):  # whose rows the cost model counts with each micro-batch's
            assert sent.get("tensor", 0) == pytest.approx(predicted.tensor, rel=0.01, abs=2**13)


@pytest.mark.parametrize("variant", variant_names())
def test_ranks_send_what_is_said(ranks: Callable[[int], Ranks], variant: str):
    for world_size, words in SHAPES:
        check(ranks(world_size), world_size, f"--variant {variant} {words}")


@pytest.mark.slow
@pytest.mark.parametrize("variant", variant_names())
@pytest.mark.parametrize("pattern", ["uniform", "1:1"])
def test_more_ranks_send_what_is_said(ranks: Callable[[int], Ranks], variant: str, pattern: str):
    for world_size, words in WIDER:
        check(ranks(world_size), world_size, f"--variant {variant} --pattern {pattern} {words}")


def over(cp: int, variant: str = "standard", **changes: object) -> Job:
    return build_job(model=replace(SMALL, layer_variants=(variant,) * 3), cp=cp, **changes)


def test_an_exchange_of_tokens_for_heads():
    """Queries, keys, values and what is mixed, of which a rank keeps one part of four; and as much backward."""
    tokens, width = 2 * 128 // 4, 64
    assert context_elements(over(4))[0] == 2 * 4 * tokens * width * 3 // 4
    assert context_elements(over(4, recompute="layer"))[0] == 3 * 4 * tokens * width * 3 // 4
    assert context_elements(over(4, "mlp")) == (0, 0, 0)
    three = stage_traffic(over(4, accumulation=3, bytes_per_element=2), 0)
    assert three.context == 3 * 2 * sum(context_elements(over(4)))


def test_values_alone_cross_where_maps_are_fixed():
    job = over(2, "fixedseq")
    rows, width = 2, 64  # values and what is mixed of each, and queries and keys of the stream
    last = 2 * (rows + 1) * 128 // 2 * 2 * width // 2
    before = 2 * (rows + 2) * 128 // 2 * 2 * width // 2
    assert context_elements(job) == (before, before, last)
    held = context_elements(replace(job, accumulation=2))
    a_row, a_stream = 128 // 2 * 2 * width // 2, 3 * 128 // 2 * 2 * width // 2
    assert held == (*(2 * 2 * rows * a_row + a_stream + 3 * a_row,) * 2, 2 * 2 * rows * a_row + a_stream)


class Gathering(ContextExchange[Mixer]):
    """The default, by another name."""


def test_whole_rows_that_are_gathered_are_kept_and_computed_by_every_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixer_class("standard"), "context_exchange", Gathering())
    whole, gathered = (layer_activations(over(cp, gpu=True))[0] for cp in (1, 4))
    vector = 4 * 2 * 128 * 64
    mixing = 5 * vector + 4 * 2 * 128 * 4  # input, queries, keys, values, mixed, and the log-sum-exps
    assert gathered.kept == mixing + (whole.kept - mixing) // 4
    assert context_elements(over(2, accumulation=7))[0] == 7 * 2 * 2 * 128 // 2 * 64  # of a job that no cache knows
    alone, shared = (step_time(over(cp, length=2**16, gpu=True, bytes_per_element=2), H100).compute for cp in (1, 4))
    assert shared > alone / 2


@pytest.mark.parametrize("variant", ["standard", "mlp", "fixedseq"])
def test_what_is_kept_falls_with_the_ranks(variant: str):
    kept = {cp: layer_activations(over(cp, variant, gpu=True))[-1].kept for cp in (1, 2, 4)}
    rows = 3 if variant == "fixedseq" else 2
    back = 0 if variant == "mlp" else 4 * rows * 128 * 64  # what was mixed comes back as another tensor
    assert kept[2] - back // 2 == kept[1] // 2
    assert kept[4] - back // 4 == kept[1] // 4
    assert p2p_bytes(over(4, variant), 1) == p2p_bytes(over(1, variant), 1) // 4


def test_to_zero_they_are_ranks_like_replicas():
    shared, replicas = (build_job(zero=2, **changes) for changes in ({"cp": 4, "dp": 2}, {"dp": 8}))
    assert shared.ranks == replicas.ranks == 8
    assert stage_traffic(shared, 0).data == stage_traffic(replicas, 0).data
    assert peak(shared).memory.optimizer == peak(replicas).memory.optimizer
