"""DeepSpeed configuration: a file of ds_configs/ and what our flags add to it."""

from pathlib import Path
from typing import Any

from deconattn.config.deepspeed_file import read_deepspeed_file
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError
from deconattn.program import quoted


def deepspeed_config(flags: TrainingFlags, accumulation_steps: int) -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`.

    Raises:
        UserError: `--deepspeed-config` is not what :mod:`deconattn.config.deepspeed_file` describes, or has a ZeRO
            stage that is not that of `--zero` or does not go with bf16 or with a pipeline.
    """
    engine = flags.engine
    path = engine.deepspeed_config or _configs_folder() / f"zero{engine.zero_stage}.json"
    config = read_deepspeed_file(path, _example())
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if engine.zero not in (None, stage):
        raise UserError(
            f"--zero {engine.zero} but --deepspeed-config {path} has ZeRO stage {stage}: give --zero {stage}"
        )
    offload = config.get("zero_optimization", {}).get("offload_optimizer")
    if flags.optimization.optimizer == "muon" and offload is not None and offload.get("device") != "none":
        raise UserError(
            f"{path}: offload_optimizer does not go with --optimizer muon, whose products are a GPU's work: leave it "
            "out, or use --optimizer adamw"
        )
    bf16 = engine.precision == "bf16"
    if bf16 and stage == 0:
        raise UserError(f"{path}: --precision bf16 needs ZeRO stage 1 or higher; raise it or use --precision fp32")
    if stage > 1 and engine.pp > 1:
        raise UserError(f"{path}: ZeRO stage {stage} does not go with --pp {engine.pp}; use stage 1, or --pp 1")
    for flag, given, none in (
        ("--zero-hpz", engine.zero_hpz, "--zero-hpz 0"),
        ("--zero-quantized-weights", engine.zero_quantized_weights, "--no-zero-quantized-weights"),
    ):
        if given and stage != 3:
            raise UserError(f"{flag} is of ZeRO stage 3 and this is stage {stage}: use --zero 3, or {none}")
        if given and config["zero_optimization"].get("offload_param", {}).get("device", "none") != "none":
            raise UserError(f"{path} sets offload_param, which does not go with {flag}: remove it, or use {none}")
    if engine.zero_hpz:
        config["zero_optimization"]["zero_hpz_partition_size"] = engine.zero_hpz
    if engine.zero_quantized_weights:
        config["zero_optimization"]["zero_quantized_weights"] = True
    # The engine clips (deconattn/train/update.py): DeepSpeed would make the host wait for each decision.
    config |= {
        "train_micro_batch_size_per_gpu": flags.optimization.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": 0.0,
        # DeepSpeed's own clock would wait for the device at both ends of each micro-batch.
        "timers": {"throughput": {"synchronized": False}},
    }
    # By default DeepSpeed rounds bf16 training's fp32 sums of gradients to bf16 to reduce them, even on one rank.
    config.setdefault("communication_data_type", "fp32")
    config.setdefault("steps_per_print", 10**9)
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    if engine.pp > 1:
        # Hops whole, and not the reentrant form of activation checkpointing, which wants inputs with gradients.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False, "use_reentrant": False}
    if bf16:
        # Gradients are added to their fp32 sums as they come, instead of all at once after being kept and zeroed.
        config["bf16"] = {"enabled": True, "immediate_grad_update": True, "check_grad_overflow": False}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _configs_folder() -> Path:
    package = Path(__file__).resolve().parents[1]
    inside = package / "ds_configs"  # in an installed wheel
    return inside if inside.is_dir() else package.parent / "ds_configs"


def _example() -> str:
    return quoted(_configs_folder() / "zero1.json")
