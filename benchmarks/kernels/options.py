"""The command line of operations.py, and what follows from it."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.kernels.cases import CASES, Shape
from benchmarks.machine import RESULTS

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS = 32768
"""Of all rows together, where the device is a GPU and `rows` is not given."""


@dataclass(frozen=True)
class Options:
    """Errors and times of every mixing operation beside its formula and its peers.

    What is 0 or empty is chosen for the device.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    """Where everything runs."""
    cases: tuple[str, ...] = ()
    """Only these, such as `taylor`; by default all."""
    check: bool = True
    """Errors against the formula in float64 before the times."""
    tune: bool = False
    """Time the Triton kernels' candidate launch parameters, and nothing else."""
    seconds: float = 3600
    """All ends after so long; the most important cases come first."""
    job_seconds: float = 300
    """A case that takes longer, compiling included, is stopped and has failed."""
    lengths: tuple[int, ...] = ()
    """Tokens in a sequence: 512 to 32768 on a GPU, 2048 on a CPU."""
    rows: int = 0
    """Sequences: 32768 tokens in all on a GPU, 4 sequences on a CPU."""
    heads: int = 0
    """14 on a GPU, 8 on a CPU."""
    head_dim: int = 64
    vocab_size: int = 50304
    """Of the cross-entropy."""
    dtypes: tuple[Precision, ...] = ()
    """Timed: bf16 on a GPU, fp32 and bf16 on a CPU."""
    check_dtypes: tuple[Precision, ...] = ("bf16", "fp32")
    check_rows: int = 2
    check_length: int = 2100
    """Tokens where errors are taken: several chunks of the linear paths, and no multiple of a tile."""
    repeats: int = 0
    """Rounds in which the contestants take turns, at most: 20 on a GPU, 5 on a CPU."""
    race_seconds: float = 20
    """After so long no further round begins, but for the first three."""
    copy_mib: int = 0
    """Bytes copied for the bandwidth's ceiling: 2048 MiB on a GPU, 256 on a CPU."""
    matmul_size: int = 0
    """Of the square product for the arithmetic's ceiling: 8192 on a GPU, 2048 on a CPU."""
    out: Path = RESULTS
    """Folder of kernels-DEVICE.json and .md (kernel_tuning-DEVICE with --tune)."""

    def rows_at(self, length: int) -> int:
        """Sequences of so many tokens."""
        return self.rows or max(1, TOKENS // length)

    def shape(self, rows: int, length: int) -> Shape:
        """With the sizes that all cases share."""
        return Shape(rows, length, self.heads, self.head_dim, self.vocab_size)

    def shown(self) -> dict[str, Any]:
        """For a result file, which has no place of its own in it."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "out"}


_ON_A_GPU: dict[str, Any] = {
    # In the order of their importance.
    "lengths": (2048, 16384, 8192, 4096, 32768, 1024, 512),
    "heads": 14,
    "dtypes": ("bf16",),
    "repeats": 20,
    "copy_mib": 2048,
    "matmul_size": 8192,
}
_ON_A_CPU: dict[str, Any] = {
    "lengths": (2048,),
    "rows": 4,
    "heads": 8,
    "dtypes": ("fp32", "bf16"),
    "repeats": 5,
    "copy_mib": 256,
    "matmul_size": 2048,
}


def filled(options: Options) -> Options:
    """With the device's defaults where nothing was given."""
    defaults = _ON_A_GPU if options.device == "cuda" else _ON_A_CPU
    defaults = {"cases": tuple(CASES), **defaults}
    return replace(options, **{name: value for name, value in defaults.items() if not getattr(options, name)})
