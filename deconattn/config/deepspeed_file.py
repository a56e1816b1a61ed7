"""Schema of `--deepspeed-config`: the keys of DeepSpeed that this project uses, with their types.

DeepSpeed itself ignores names that it does not know and takes `"1"` for 1; what is not listed here is refused, so that
no setting is ignored, and nothing that changes the model, the data or the arithmetic comes in beside the flags.
"""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deconattn.errors import UserError
from deconattn.json_files import parse_json, read_bytes, reason

OURS = {
    "train_batch_size": "--global-batch-size",
    "train_micro_batch_size_per_gpu": "--micro-batch-size",
    "gradient_accumulation_steps": "--global-batch-size and --micro-batch-size",
    "gradient_clipping": "--clip-grad",
    "bf16": "--precision",
    "bfloat16": "--precision",
    "fp16": "--precision",
    "amp": "--precision",
    "torch_autocast": "--precision",
    "optimizer": "--lr, --adam-beta1, ...",
    "scheduler": "--lr, --warmup-steps and --steps",
    "pipeline": "--pp",
    "tensor_parallel": "--tp",
    "sequence_parallel_size": "--cp",
    "activation_checkpointing": "--recompute",
    "compile": "--compile",
    "data_types": "--precision",
    "checkpoint": "--save",
    "wandb": "--wandb-project",
    "tensorboard": "--tensorboard",
}
"""Keys that a DeepSpeed file may not set, and the flag that does."""

OF_ZERO = {
    "zero_hpz_partition_size": "use --zero-hpz",
    "zero_quantized_weights": "use --zero-quantized-weights",
    "mics_shard_size": "DeepSpeed has MiCS no more; use --zero-hpz, which shares weights out over neighbours, too",
    "mics_hierarchical_params_gather": "DeepSpeed has MiCS no more; use --zero-hpz",
    "zero_quantized_gradients": "DeepSpeed's kernel takes gradients of any format for fp16, and ours are fp32 or bf16",
}
"""Keys of zero_optimization that a file may not set, and what to do instead, or why."""


def _whole(value: Any) -> Any:
    """Take 5e8, as DeepSpeed's files write it, for a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**63)]
Positive = Annotated[int, BeforeValidator(_whole), Field(gt=0, lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Offload(_Strict):
    device: Literal["none", "cpu"]
    pin_memory: bool = True


class _OffloadOptimizer(_Offload):
    fast_init: bool = False


class _OffloadParam(_Offload):
    max_in_cpu: Count = 0


class _Zero(_Strict):
    stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(lambda value: "a bool" if isinstance(value, bool) else value)]
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    reduce_bucket_size: Positive = 0
    use_multi_rank_bucket_allreduce: bool = True
    allgather_partitions: bool = True
    allgather_bucket_size: Positive = 0
    overlap_comm: bool = False
    round_robin_gradients: bool = False
    offload_optimizer: _OffloadOptimizer | None = None
    offload_param: _OffloadParam | None = None
    sub_group_size: Positive = 0
    stage3_prefetch_bucket_size: Count = 0
    stage3_param_persistence_threshold: Count = 0
    stage3_model_persistence_threshold: Count = 0
    stage3_max_live_parameters: Count = 0
    stage3_max_reuse_distance: Count = 0
    stage3_use_all_reduce_for_fetch_params: bool = False
    stage3_allgather_sequential: bool = False
    memory_efficient_linear: bool = True


class _FlopsProfiler(_Strict):
    enabled: bool
    profile_step: Positive = 1
    module_depth: Annotated[int, Field(ge=-1)] = -1
    top_modules: Positive = 1
    detailed: bool = True
    output_file: str | None = None


class _CommsLogger(_Strict):
    enabled: bool
    verbose: bool = False
    prof_all: bool = True
    debug: bool = False
    prof_ops: list[str] = []


class _File(_Strict):
    zero_optimization: _Zero | None = None
    zero_allow_untested_optimizer: Literal[True] = True
    zero_force_ds_cpu_optimizer: Literal[False] = False
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    steps_per_print: Positive = 1
    dump_state: bool = False
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    flops_profiler: _FlopsProfiler | None = None
    comms_logger: _CommsLogger | None = None


FROM_STAGE = {
    "round_robin_gradients": (1, 2),
    "contiguous_gradients": (1, 2, 3),
    "overlap_comm": (1, 2, 3),
    "offload_optimizer": (1, 2, 3),
    "offload_param": (3,),
    "sub_group_size": (3,),
    "memory_efficient_linear": (3,),
}
"""ZeRO stages that a setting is of; those called `stage3_...` are of stage 3. DeepSpeed ignores it at any other."""


def read_deepspeed_file(path: Path, example: str) -> dict[str, Any]:
    """Read and check a file; returns what it says, nothing added.

    Args:
        example: a file that is right, as messages show it.

    Raises:
        UserError: not a JSON object, a key that is not known or is there twice, a value of another type, or settings
            that do not go together.
    """
    where = f"--deepspeed-config {path}"
    try:
        config = parse_json(read_bytes(path), finite=True, pairs=_unique)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {reason(error)}; give JSON such as {example}") from error
    if not isinstance(config, dict):
        raise UserError(f"{where}: not a JSON object; give a file such as {example}")
    for key, flag in OURS.items():
        if key in config:
            raise UserError(f"{where} sets {key}: remove it there and use {flag}")
    zero = config.get("zero_optimization")
    for key, instead in OF_ZERO.items():
        if isinstance(zero, dict) and key in zero:
            raise UserError(f"{where} sets zero_optimization.{key}: remove it there; {instead}")
    try:
        _File.model_validate(config)
    except ValidationError as error:
        raise UserError(f"{where}: {_explained(error)}") from None
    config = _without_nulls(config)
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    for key, value in zero.items():
        stages = (3,) if key.startswith("stage3_") else FROM_STAGE.get(key, (0, 1, 2, 3))
        if stage not in stages and value is not False:
            wanted = " or ".join(str(number) for number in stages)
            raise UserError(
                f"{where}: zero_optimization.{key} is of ZeRO stage {wanted} and the file has stage {stage}: "
                "remove the key or change the stage"
            )
    return config


def _without_nulls(value: Any) -> Any:
    """Leave out what is null, as good as not given."""
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key!r} is there twice")
        values[key] = value
    return values


def _explained(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        near = get_close_matches(place[-1], _names(place[:-1]), n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"{'.'.join(place)} is no setting that a training here uses{meant or '; remove it'}"
    if first["type"] == "missing":
        return f"{'.'.join(place)} is missing: add it"
    fault = first["msg"][0].lower() + first["msg"][1:]
    return f"{'.'.join(place)} is {json.dumps(first['input'])[:60]}: {fault.replace('input should', 'it should')}"


def _names(place: list[str]) -> list[str]:
    """Return the known keys of the object at a place of the file."""
    parts: dict[str, type[BaseModel]] = {
        "zero_optimization": _Zero,
        "offload_optimizer": _OffloadOptimizer,
        "offload_param": _OffloadParam,
        "flops_profiler": _FlopsProfiler,
        "comms_logger": _CommsLogger,
    }
    schema = parts[place[-1]] if place else _File
    return list(schema.model_fields)
