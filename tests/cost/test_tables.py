"""What variants cost, side by side."""

from dataclasses import replace

import pytest

from deconattn.cost.tables import binary, cost_tables, feed_forward_costs, flop, mixer_costs, model_costs
from deconattn.mixers import Workload, mixer_class, variant_names
from deconattn.model.flops import head_forward_flops
from tests.cost.test_memory import SMALL, build_job


@pytest.mark.parametrize("variant", variant_names())
def test_a_model_is_its_layers_and_the_head(variant: str):
    job = build_job(model=replace(SMALL, layer_variants=(variant,) * 3, num_key_value_heads=2))
    mixer, feed_forward, model = mixer_costs(job, variant), feed_forward_costs(job), model_costs(job)
    assert model.prefill == 3 * (mixer.prefill + feed_forward.prefill) + head_forward_flops(job.model, 2, 1)
    assert model.decode == 3 * (mixer.decode + feed_forward.decode) + head_forward_flops(job.model, 1, 1)
    assert model.cache == 3 * mixer.cache
    assert model.fixed_bytes == 3 * mixer.fixed_bytes
    assert model.activations > 3 * (mixer.activations + feed_forward.activations)  # norms
    layers = 3 * (mixer.training + feed_forward.training)
    if mixer_class(variant).fixed_stream:  # the stream's row passes the feed-forward blocks of all layers but the last
        layers += 2 * feed_forward.training / 2
        three, two = (mixer_class(variant).forward_flops(job.model, Workload(rows, 128)) for rows in (3, 2))
        layers -= 3 * (three - two) / (2 * 128)  # and in that one it gives queries and keys alone
    assert model.training == layers + 3 * head_forward_flops(job.model, 1, 1)


def test_terms_by_hand():
    """Standard attention and a fixed map, 2 rows of 128 tokens, width 64."""
    job = build_job()
    standard, fixed = mixer_costs(job, "standard"), mixer_costs(job, "fixedseq")
    assert standard.prefill == 2 * (8 * 128 * 64**2 + 2 * 128**2 * 64)
    assert standard.decode == 8 * 64**2 + 4 * 128 * 64
    assert standard.training == 3 * standard.prefill / (2 * 128)
    assert standard.cache == 2 * 2 * 128 * 64 * 4
    assert fixed.prefill == 2 * 4 * 128 * 64**2 + 3 * 128**2 * 64
    assert fixed.fixed_flops == 4 * 128 * 64**2
    assert fixed.decode == 4 * 64**2 + 3 * 2 * 128 * 64 / 2
    assert fixed.cache == 2 * 128 * 64 * 4
    assert fixed.fixed_bytes == 2 * 128 * 64 * 4


def test_units_leave_one_to_three_digits():
    assert [flop(count) for count in (0, 7, 999, 1000, 12345, 6.78e12)] == [
        "0", "7.00 FLOP", "999 FLOP", "1.00 kFLOP", "12.3 kFLOP", "6.78 TFLOP",
    ]  # fmt: skip
    assert [binary(size) for size in (512, 1023, 1024, 3 * 2**29)] == ["512 B", "1,023 B", "1.00 KiB", "1.50 GiB"]


def test_tables_have_a_line_for_each_variant():
    layer, model = cost_tables({name: build_job() for name in ("standard", "mlp")}, "even")
    assert list(layer.columns[0].cells) == ["standard", "mlp", "feed-forward"]
    assert list(model.columns[0].cells) == ["standard", "mlp"]
    assert model.title == "The model, pattern even, 2 x 128 tokens, fp32"
