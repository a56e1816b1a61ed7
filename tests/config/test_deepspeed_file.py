"""What a file of --deepspeed-config may say: everything else is refused in one line, before a rank starts."""

import copy
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from deconattn.config.deepspeed import deepspeed_config
from deconattn.config.deepspeed_file import read_deepspeed_file
from deconattn.config.flag_groups import EngineFlags
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError
from deconattn.launch.preflight import checked_flags
from tests.conftest import ROOT

OURS = sorted((ROOT / "ds_configs").glob("*.json"))
EVERYTHING = {
    "zero_optimization": {
        "stage": 3,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 5e8,
        "allgather_partitions": True,
        "allgather_bucket_size": 500000000,
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": False, "fast_init": False},
        "offload_param": {"device": "cpu", "pin_memory": True, "max_in_cpu": 1e9},
        "sub_group_size": 1e9,
        "stage3_prefetch_bucket_size": 5e7,
        "stage3_param_persistence_threshold": 10000,
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
    },
    "zero_allow_untested_optimizer": True,
    "communication_data_type": "fp32",
    "steps_per_print": 10,
    "wall_clock_breakdown": False,
    "flops_profiler": {"enabled": False, "profile_step": 2, "module_depth": -1, "output_file": None},
    "comms_logger": {"enabled": False, "prof_ops": ["all_reduce"]},
}


def read(tmp_path: Path, content: Any) -> dict[str, Any]:
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_deepspeed_file(path, "EXAMPLE")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_own_files_are_taken_as_they_are(path: Path) -> None:
    assert read_deepspeed_file(path, "") == json.loads(path.read_text())


def test_every_known_key_is_taken(tmp_path: Path) -> None:
    expected = copy.deepcopy(EVERYTHING)
    del expected["flops_profiler"]["output_file"]  # null is as good as not given
    assert read(tmp_path, EVERYTHING) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bfloat16": {"enabled": True}}, "sets bfloat16: remove it there and use --precision"),
        ({"fp16": {"enabled": True}}, "use --precision"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "use --precision"),
        ({"activation_checkpointing": {}}, "use --recompute"),
        ({"zero_optimisation": {"stage": 1}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 1, "overlap_com": True}}, "did you mean overlap_comm?"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "cpu_offload is no setting"),
        ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor is no setting"),
        ({"elasticity": {"enabled": True}}, "elasticity is no setting"),
        ({"zero_optimization": {"stage": "1"}}, 'zero_optimization.stage is "1"'),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4"),
        ({"zero_optimization": {"stage": 1.5}}, "zero_optimization.stage is 1.5"),
        ({"zero_optimization": {}}, "zero_optimization.stage is missing"),
        ({"zero_optimization": 2}, "zero_optimization is 2"),
        ({"zero_optimization": [1]}, "zero_optimization is"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}}, "reduce_bucket_size is 0"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -5}}, "reduce_bucket_size is -5"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1.5}}, "reduce_bucket_size is 1.5"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}, 'reduce_bucket_size is "auto"'),
        ({"zero_optimization": {"stage": 2, "overlap_comm": 1}}, "overlap_comm is 1"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "nvme"}}}, "device"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu", "ratio": 0.3}}}, "ratio"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param is of ZeRO stage 3"),
        ({"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1}}, "is of ZeRO stage 3"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "is of ZeRO stage 1 or 2 or 3"),
        ({"zero_optimization": {"stage": 3, "round_robin_gradients": True}}, "is of ZeRO stage 1 or 2"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "DeepSpeed has MiCS no more; use --zero-hpz"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "use --zero-hpz"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "use --zero-quantized-weights"),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
            "gradients of any format for fp16",
        ),
        ({"communication_data_type": "float32"}, "communication_data_type"),
        ({"zero_allow_untested_optimizer": False}, "zero_allow_untested_optimizer is false"),
        ({"zero_force_ds_cpu_optimizer": True}, "zero_force_ds_cpu_optimizer is true"),
        ({"steps_per_print": 0}, "steps_per_print is 0"),
        ({"flops_profiler": True}, "flops_profiler is true"),
        ([], "not a JSON object"),
        ("", "give JSON such as EXAMPLE"),
        ('{"a": 1', "give JSON such as EXAMPLE"),
        ('{"steps_per_print": NaN}', "NaN is no number"),
        ('{"steps_per_print": 1, "steps_per_print": 2}', "'steps_per_print' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"zero_optimization": ' * 100_000, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_known_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe.json", tmp_path / "loop.json"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (pipe, loop, tmp_path):
        with pytest.raises(UserError, match="--deepspeed-config"):
            read_deepspeed_file(path, "")
    latin = tmp_path / "latin.json"
    latin.write_bytes('{"é": 1}'.encode("latin-1"))
    with pytest.raises(UserError, match="utf-8"):
        read_deepspeed_file(latin, "")


@pytest.mark.parametrize(("zero", "pp"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2)])
def test_gradients_are_reduced_in_fp32_unless_the_file_says_otherwise(zero: int, pp: int, tmp_path: Path) -> None:
    flags = EngineFlags(precision="bf16" if zero else "fp32", zero=zero, pp=pp)
    assert deepspeed_config(TrainingFlags(engine=flags), 1)["communication_data_type"] == "fp32"
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": zero}, "communication_data_type": "bf16"}))
    flags = replace(flags, deepspeed_config=path)
    assert deepspeed_config(TrainingFlags(engine=flags), 1)["communication_data_type"] == "bf16"


def test_deepspeed_does_not_stop_the_device_for_its_clock(tmp_path: Path) -> None:
    from deepspeed.runtime.config import get_timers_config

    config = deepspeed_config(TrainingFlags(engine=EngineFlags(precision="bf16")), 1)
    assert not get_timers_config(config).synchronized


def test_zero_and_the_file_agree(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    flags = TrainingFlags(engine=EngineFlags(precision="fp32", deepspeed_config=path, zero=1))
    with pytest.raises(UserError, match="--zero 1 but .* has ZeRO stage 2: give --zero 2"):
        deepspeed_config(flags, 1)


def test_zero_plus_plus_is_of_stage_3_and_takes_no_offloading(tmp_path: Path) -> None:
    flags = EngineFlags(precision="bf16", zero=3, zero_hpz=4, zero_quantized_weights=True)
    zero = deepspeed_config(TrainingFlags(engine=flags), 1)["zero_optimization"]
    assert (zero["zero_hpz_partition_size"], zero["zero_quantized_weights"]) == (4, True)
    parsed = DeepSpeedZeroConfig(**zero)
    assert (parsed.zero_hpz_partition_size, parsed.zero_quantized_weights) == (4, True)
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}))
    for flag, none in (
        ({"zero_hpz": 4}, "--zero-hpz 0"),
        ({"zero_quantized_weights": True}, "--no-zero-quantized-weights"),
    ):
        with pytest.raises(UserError, match=f"of ZeRO stage 3 and this is stage 2: use --zero 3, or {none}"):
            deepspeed_config(TrainingFlags(engine=EngineFlags(precision="bf16", zero=2, **flag)), 1)
        with pytest.raises(UserError, match=f"offload_param, .* or use {none}"):
            deepspeed_config(TrainingFlags(engine=EngineFlags(precision="bf16", deepspeed_config=path, **flag)), 1)


@pytest.mark.parametrize(
    ("hpz", "ranks", "remedy"),
    [(3, 8, "use one of 2, 4, or 0"), (8, 8, "use one of 2, 4, or 0"), (2, 2, "use --zero-hpz 0"), (16, 8, "2, 4")],
)
def test_second_copies_divide_the_data_parallel_ranks(hpz: int, ranks: int, remedy: str) -> None:
    assert EngineFlags(zero=3, tp=2, zero_hpz=2).data_parallel_size(8) == 4
    with pytest.raises(UserError, match=remedy):
        EngineFlags(zero=3, tp=2, zero_hpz=hpz).data_parallel_size(2 * ranks)


def test_weights_are_not_quantized_without_a_gpu() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--zero-quantized-weights needs GPUs, and there is none: leave it out"):
            checked_flags(["--zero", "3", "--zero-quantized-weights"])


CASES = 600
WRONG = [None, True, False, 0, -1, 1, 2, 3, 1.5, 2.0, 1e30, "", "1", "auto", "cpu", [], [1], {}, {"enabled": True}]


def test_what_is_taken_says_the_same_to_deepspeed(tmp_path: Path) -> None:
    """Changed at random, a file is refused in one line, or DeepSpeed reads from it exactly what it says."""
    rng, taken, refused = random.Random(0), 0, []
    for _ in range(CASES):
        content = copy.deepcopy(EVERYTHING)
        place = rng.choice([content, content["zero_optimization"], content["zero_optimization"]["offload_param"]])
        key = rng.choice(sorted(place))
        act = rng.randrange(4)
        if act == 0:
            del place[key]
        elif act == 1:
            place[key[: rng.randrange(len(key))] + rng.choice("xyz")] = place.pop(key)
        else:
            place[key] = rng.choice(WRONG)
        try:
            config = read(tmp_path, content)
        except UserError as error:
            refused.append(str(error))
            continue
        taken += 1
        zero = config.get("zero_optimization", {})
        parsed = DeepSpeedZeroConfig(**zero)
        names = {field.alias or name: name for name, field in DeepSpeedZeroConfig.model_fields.items()}
        for name, value in zero.items():
            read_back = getattr(parsed, names[name])
            if isinstance(value, dict):
                read_back = {key: getattr(read_back, key) for key in value}
            assert read_back == value
            assert isinstance(read_back, bool) == isinstance(value, bool)
    assert not any("\n" in message for message in refused)
    assert taken > CASES // 20
