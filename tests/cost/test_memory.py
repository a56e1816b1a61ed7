"""Memory terms against the tensors of real modules, and against sums made by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deconattn.config.flag_groups import Recompute
from deconattn.config.flags import model_config
from deconattn.config.presets import size_defaults
from deconattn.cost.activations import layer_activations, loss_bytes, p2p_bytes, static_bytes
from deconattn.cost.job import Job
from deconattn.cost.memory import peak, stage_snapshots
from deconattn.cost.zero import zero_memory
from deconattn.layers.config import ModelConfig
from deconattn.mixers import variant_names
from deconattn.model.decoder import Decoder
from deconattn.model.recompute import recompute
from deconattn.ops import head_slices

SMALL = ModelConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=128,
    layer_variants=("standard",) * 3,
)


def build_job(**changes: object) -> Job:
    settings = {
        "model": SMALL, "length": 128, "micro_batch": 2, "accumulation": 1, "bytes_per_element": 4, "zero": 0,
        "gpu": False,
    }  # fmt: skip
    return Job(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["none", "mixer", "mlp", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", variant_names())
def test_activations_are_what_the_decoder_keeps(variant: str, dtype: torch.dtype, part: Recompute):
    config = replace(SMALL, layer_variants=(variant, "standard", variant))
    decoder = Decoder(config).to(dtype)
    recompute(decoder, part)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = decoder(torch.zeros(2, 128, dtype=torch.long))
    for parameter in decoder.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    job = build_job(model=config, bytes_per_element=dtype.itemsize, recompute=part)
    expected = sum(layer.kept for layer in layer_activations(job)) + static_bytes(job, range(3))
    expected += 8 * 2 * 128 * 64 + 4 * 2 * 128  # the final norm
    assert sum(kept.values()) == pytest.approx(expected, rel=0.02)
    del output


def test_sequence_parallelism_shares_all_that_is_kept():
    whole, tensor, sequence = (
        layer_activations(build_job(gpu=True, **changes))[0]
        for changes in ({}, {"tp": 2}, {"tp": 2, "sequence_parallel": True})
    )
    tokens, size = 2 * 128, 4
    inputs = 2 * size * tokens * 64  # of mixer and feed-forward, whole on every rank without sequence parallelism
    residuals = 2 * (size * tokens * 64 + 4 * tokens)
    assert tensor.kept - inputs - residuals == (whole.kept - inputs - residuals) / 2
    assert sequence.kept == whole.kept / 2
    assert sequence.input == whole.input / 2


def test_a_token_of_70b_keeps_what_megatrons_does():
    """34 KB a token and layer at tp 8 (Korthikanti et al. 2023, table 2: 34 sbh / t bytes, there without grouping)."""
    model = replace(SMALL, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
                    head_dim=128, layer_variants=("standard",), num_hidden_layers=1)  # fmt: skip
    job = build_job(model=model, bytes_per_element=2, micro_batch=1, tp=8, sequence_parallel=True, gpu=True)
    assert layer_activations(job)[0].kept / job.length == pytest.approx(34.3e3, rel=0.1)


def test_no_rank_holds_more_logits_than_its_part():
    whole, half = (loss_bytes(build_job(length=4096, tp=tp, model=replace(SMALL, vocab_size=50304))) for tp in (1, 2))
    assert max(half.logits, whole.logits) <= 4 * 2**24
    assert half.gradients - 4 * 2 * 4096 * 64 == (whole.gradients - 4 * 2 * 4096 * 64) / 2


@pytest.mark.parametrize("words", [500, 512])
def test_logits_on_a_gpu_are_what_the_slices_hold(words: int, monkeypatch: pytest.MonkeyPatch):
    """In bf16 alone, padded; a head with other rows is copied."""
    monkeypatch.setattr(head_slices, "_adds_in_fp32", lambda _: True)
    job = build_job(gpu=True, bytes_per_element=2, model=replace(SMALL, vocab_size=words))
    hidden, weight = (torch.zeros(count, 64, dtype=torch.bfloat16) for count in (2 * 128, words))
    slices = head_slices.InPlace(hidden, weight, len(hidden), True)
    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in vars(slices).values()
            if isinstance(one, Tensor) and one is not weight}  # fmt: skip
    found = loss_bytes(job)
    assert sum(held.values()) + hidden.nbytes == found.logits + found.gradients


def test_static_embeddings_travel_as_far_as_a_layer_reads_them():
    job = build_job(model=replace(SMALL, layer_variants=("standard", "staticemb", "standard")))
    assert p2p_bytes(job, 1) == 2 * p2p_bytes(job, 2) == 2 * 4 * 2 * 128 * 64


def test_fixed_streams_travel_as_far_as_a_layer_reads_them():
    job = build_job(model=replace(SMALL, layer_variants=("fixedseq", "rndemb", "standard")))
    assert p2p_bytes(job, 1) == 2 * p2p_bytes(job, 2) == 4 * 4 * 128 * 64


@pytest.mark.parametrize(
    ("zero", "size", "ranks", "between_steps"),
    [
        (0, 4, 4, 4 + 8),
        (1, 4, 4, 4 + 12 / 4),
        (2, 4, 4, 4 + 12 / 4),
        (1, 2, 4, 2 + 4 + 12 / 4),
        (2, 2, 4, 2 + 12 / 4),
        (3, 2, 4, 2 / 4 + 12 / 4 + 4 / 4),
    ],
)
def test_states_between_steps(zero: int, size: int, ranks: int, between_steps: float):
    job = build_job(zero=zero, bytes_per_element=size, dp=ranks, bucket=1000)
    always = zero_memory(job, 1_000_000, 10_000).always
    bucket = 1000 * 4 if zero == 3 else 0  # in fp32, which gradients are reduced in, bf16's too
    assert always.total == between_steps * 1_000_000 + bucket


def test_a_gpu_adds_gradients_to_their_sums_as_they_are():
    job = build_job(zero=2, bytes_per_element=2, dp=2, bucket=2_000_000)
    cpu, gpu = (zero_memory(replace(job, gpu=gpu), 1_000_000, 10_000).reduction.total for gpu in (False, True))
    assert cpu - gpu == 4 * 10_000


def test_recomputing_layers_needs_less():
    model = model_config(size_defaults("500m").model, 50277, 2048)
    plain = build_job(model=model, length=2048, micro_batch=8)
    assert peak(replace(plain, recompute="layer")).memory.activations < peak(plain).memory.activations / 4


def test_early_stages_hold_more_micro_batches():
    job = build_job(pp=3, accumulation=8)
    assert [job.in_flight(stage) for stage in range(3)] == [3, 2, 1]
    assert job.bubble == 2 / 10
    most = [max(m.memory.activations for m in stage_snapshots(job, stage)) for stage in range(3)]
    assert most[0] > most[1] > most[2]
    assert replace(job, accumulation=2).in_flight(0) == 2


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_muon_keeps_one_moment_of_a_layers_matrices(zero: int):
    job = build_job(zero=zero, dp=1 if zero == 0 else 4)
    ours, adamw = ({s.name: s.memory for s in stage_snapshots(j, 0)} for j in (replace(job, optimizer="muon"), job))
    matrices = 3 * (4 * 64 * 64 + 3 * 64 * 160)
    saved = 4 * matrices // job.dp
    for name in ours.keys() - {"start-up", "step"}:
        assert adamw[name].total - ours[name].total == saved, name
    assert ours["step"].total == adamw["step"].total - saved + 20 * 64 * 160
