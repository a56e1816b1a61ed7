"""Sizes, defaults and the parameter match."""

import dataclasses
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from deconattn.config.command_line import parse_training_flags, to_json
from deconattn.config.flag_groups import EngineFlags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.presets import SIZES, size_defaults
from deconattn.config.run_config import read_run_config
from deconattn.errors import UserError
from deconattn.mixers import variant_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.flops import count_parameters, forward_flops

TABLE_10 = {  # hidden, intermediate, layers, heads
    "70m": (512, 2048, 6, 8),
    "160m": (768, 3072, 12, 12),
    "500m": (896, 4864, 24, 14),
    "1.7b": (2048, 6144, 28, 16),
}
VOCABULARY = 50277


@pytest.mark.parametrize("size", ["tiny", *TABLE_10])
@pytest.mark.parametrize("heads", ["mha", "gqa"])
@pytest.mark.parametrize("variant", variant_names())
def test_every_variant_matches_standard_within_a_thousandth(size: str, heads: str, variant: str) -> None:
    flags = dataclasses.replace(size_defaults(size).model, variant=variant)
    if heads == "gqa":
        flags = dataclasses.replace(flags, num_key_value_heads=flags.num_attention_heads // 2)
    config = model_config(flags, VOCABULARY, 2048)
    standard = model_config(dataclasses.replace(flags, variant="standard"), VOCABULARY, 2048)
    count, target = count_parameters(config), count_parameters(standard)
    assert abs(count.total - target.total) <= target.total / 1000
    assert abs(count.non_embedding - target.non_embedding) <= target.non_embedding / 1000
    if variant != "mlp":
        assert count == target
    with torch.device("meta"):
        model = CausalLM(config)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_mlp_matches_standard_at_every_size(size: str) -> None:
    flags = size_defaults(size).model
    count, target = (
        count_parameters(model_config(dataclasses.replace(flags, variant=variant), VOCABULARY, 2048)).total
        for variant in ("mlp", "standard")
    )
    assert abs(count - target) <= target / 1000


def test_sizes_beyond_the_paper_are_as_large_as_they_say() -> None:
    counts = [count_parameters(model_config(size_defaults(size).model, 32000, 4096)).total for size in ("7b", "70b")]
    assert counts == pytest.approx([6.74e9, 68.98e9], rel=0.002)  # Llama 2's own


@pytest.mark.parametrize("size", TABLE_10)
def test_sizes_are_table_10(size: str) -> None:
    config = model_config(size_defaults(size).model, VOCABULARY, 2048)
    dimensions = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads
    assert dimensions == TABLE_10[size]
    assert config.num_key_value_heads == config.num_attention_heads
    assert (config.qk_norm, config.attention_bias) == ((True, False) if size == "1.7b" else (False, True))
    assert config.vocab_size == 50304
    assert config.head_dim == (128 if size == "1.7b" else 64)


def test_training_defaults_are_table_9() -> None:
    flags = parse_training_flags(["--size", "500m"])
    optimization = flags.optimization
    assert (optimization.adam_beta1, optimization.adam_beta2, optimization.adam_eps) == (0.9, 0.9999, 1e-8)
    assert (optimization.weight_decay, optimization.clip_grad, optimization.lr) == (0.1, 1.0, 4e-4)
    assert (flags.data.seq_len, optimization.global_batch_size) == (2048, 256)
    assert (flags.total_steps, flags.warmup_steps) == (120_000, 2000)
    assert (flags.model.variant, flags.model.pattern) == ("standard", "uniform")
    assert size_defaults("1.7b").optimization.lr == 3e-4


def test_every_field_can_be_overridden() -> None:
    flags = parse_training_flags(
        ["--size", "70m", "--hidden-size", "256", "--num-attention-heads", "4", "--rope-theta", "10000"]
    )
    config = model_config(flags.model, VOCABULARY, flags.data.seq_len)
    assert (config.hidden_size, config.head_dim, config.intermediate_size) == (256, 64, 2048)
    assert config.rope_theta == 10000


def test_tokens_become_steps() -> None:
    flags = parse_training_flags("--size 70m --tokens 1000000000".split())
    assert flags.total_steps == -(-1_000_000_000 // (256 * 2048))


def written(folder: Path, flags: dict[str, Any]) -> TrainingFlags:
    """The flags of a run's config.json, read back."""
    model = dataclasses.asdict(model_config(size_defaults("70m").model, VOCABULARY, 2048))
    (folder / "config.json").write_text(json.dumps({"flags": flags, "model": model}))
    return read_run_config(folder, "restore it").flags


def test_flags_survive_json(tmp_path: Path) -> None:
    flags = parse_training_flags(
        ["--pattern", "3*mlp,standard", "--data", "/a", "/b:2", "--doc-mask", "--tokens", "99"]
    )
    assert written(tmp_path, to_json(flags)) == flags


def test_flags_of_another_version_are_told_from_ours(tmp_path: Path) -> None:
    values = to_json(TrainingFlags())
    values["engine"]["precision"] = "fp8"
    with pytest.raises(UserError, match=r"is no run.s configuration \(flags.engine.precision: .*restore it"):
        written(tmp_path, values)
    values = to_json(TrainingFlags())
    values["engine"]["presicion"] = "fp32"
    with pytest.raises(UserError, match="presicion is not known to this version"):
        written(tmp_path, values)


def test_forward_flops_by_hand() -> None:
    flags = dataclasses.replace(size_defaults("70m").model, variant="fixedseq", pattern="1:1")
    config = model_config(flags, VOCABULARY, 2048)
    rows, length, d, f = 3, 100, 512, 2048
    head = 2 * rows * length * d * 50304
    feed_forward = 6 * length * d * f
    fixed = 2 * length * d * 2 * d  # Q and K of the stream
    standard = 0
    for layer in range(6):
        here = rows + (layer < 4)  # the stream ends at layer 5's queries and keys
        if layer % 2 == 0:
            fixed += 2 * here * length * d * 2 * d + (1 + here) * length**2 * d
        else:
            standard += here * (8 * length * d * d + 2 * length**2 * d)
    fixed += 2 * (2 * length * d * 2 * d)  # of the other two fixed layers
    streams = feed_forward * (6 * rows + 4)
    assert forward_flops(config, rows, length) == head + fixed + standard + streams


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tp 3", "--tp 3 does not divide the 4 attention heads: use one of 1, 2, 4"),
        ("--num-attention-heads 8 --num-key-value-heads 2 --tp 8 --pp 5", "--pp 5 is more than the 4 layers"),
        ("--num-attention-heads 12 --hidden-size 96 --num-key-value-heads 3 --tp 4", "neither divides the 3 key/value"),
        ("--tp 4 --intermediate-size 3", "more than the intermediate_size of 3"),
        ("--pp 2 --zero 2", "--zero 2 does not go with --pp 2"),
        ("--pp 2 --zero 3", "--zero 3 does not go with --pp 2"),
        ("--sequence-parallel", "give --tp 2 or more"),
        ("--sequence-parallel --tp 2 --seq-len 255", "--tp 2 does not divide --seq-len 255: use --seq-len 254"),
        ("--cp 3 --seq-len 256", "--cp 3 does not divide --seq-len 256: use --seq-len 255"),
        ("--cp 3 --tp 2 --sequence-parallel --seq-len 256", "--cp 3 x --tp 2 does not divide --seq-len 256"),
        ("--cp 0", "--cp is 0: it must be above zero"),
        ("--tp 0", "--tp is 0"),
        ("--pp -1", "--pp is -1"),
        ("--distributed-timeout-minutes 0", "--distributed-timeout-minutes is 0"),
    ],
)
def test_topologies_that_cannot_be(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_training_flags(flags.split())


def test_a_mixer_that_declares_no_splits_is_not_cut(tmp_path: Path) -> None:
    plugin = tmp_path / "whole_only.py"
    plugin.write_text(
        "from deconattn.mixers import Standard, register\n"
        "@register('whole_only')\n"
        "class WholeOnly(Standard):\n"
        "    splits = None\n"
    )
    flags = f"--plugin {plugin} --variant whole_only".split()
    parse_training_flags(flags)
    with pytest.raises(UserError, match="'whole_only' declares no splits"):
        parse_training_flags([*flags, "--tp", "2"])


@pytest.mark.parametrize(("tp", "pp", "world", "replicas"), [(1, 1, 3, 3), (2, 2, 8, 2), (4, 1, 4, 1)])
def test_replicas_are_what_is_left(tp: int, pp: int, world: int, replicas: int) -> None:
    engine = EngineFlags(tp=tp, pp=pp)
    assert engine.data_parallel_size(world) == replicas
    with pytest.raises(UserError, match=f"--tp {tp} x --pp {pp}") if tp * pp > 1 else nullcontext():
        engine.data_parallel_size(world + 1)
