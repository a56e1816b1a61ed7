"""Each mixing path of `deconattn.ops` against the paper's formula in float64, forward and gradients, and its time.

    python benchmarks/gpu_ops.py --device cuda --out benchmarks/results

The inputs are rounded to the precision under test before the reference reads them, so an error is the path's own.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, markdown_table, write_result
from deconattn.cli import parse, run
from deconattn.ops import reference
from deconattn.ops.cross_entropy import linear_cross_entropy
from deconattn.ops.documents import Documents
from deconattn.ops.fixed_map import fixed_map_attention
from deconattn.ops.prefix_average import prefix_average
from deconattn.ops.softmax_attention import causal_attention
from deconattn.ops.taylor_attention import taylor_attention

TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 3e-2}
"""Largest relative error: |ours - reference| over |reference|, both as Euclidean norms. fp32 leaves room for TF32."""
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Arguments:
    """Errors and times of the mixing paths."""

    device: str = "cuda"
    """Where the paths run."""
    rows: int = 2
    """Sequences checked against the reference, whose maps are whole."""
    length: int = 1000
    """Tokens in a sequence where correctness is checked; not a multiple of any tile."""
    heads: int = 14
    head_dim: int = 64
    vocab_size: int = 50304
    timed_rows: int = 8
    """Sequences where time is taken."""
    timed_length: int = 2048
    """Tokens in a sequence where time is taken."""
    repeats: int = 10
    """Timed calls, forward and backward."""
    out: Path = RESULTS
    """Folder of gpu_ops.json and gpu_ops.md."""


@dataclass(frozen=True)
class Case:
    """A path, its formula, and what both take.

    Attributes:
        inputs: from rows and length to the differentiable inputs, float64 on the CPU.
        constants: likewise the others, by keyword.
    """

    name: str
    ours: Function
    formula: Function
    inputs: Callable[[int, int], list[Tensor]]
    constants: Callable[[int, int], dict[str, Any]]


def cases(arguments: Arguments) -> list[Case]:
    """Every path, with document masks where it takes them, and one with grouped heads."""
    heads, width = arguments.heads, arguments.head_dim

    def projected(groups: int) -> Callable[[int, int], list[Tensor]]:
        return lambda rows, length: [
            _normal(rows, count, length, width) for count in (heads, heads // groups, heads // groups)
        ]

    def none(rows: int, length: int) -> dict[str, Any]:
        return {"document_ids": None}

    def masked(rows: int, length: int) -> dict[str, Any]:
        starts = torch.zeros(rows, length, dtype=torch.long)
        starts[:, :: max(1, length // 3)] = 1
        return {"document_ids": starts.cumsum(dim=1) - 1}

    def scored(rows: int, length: int) -> list[Tensor]:
        return [3 * _normal(rows, heads, length), _normal(rows, heads, length, width)]

    def fixed(rows: int, length: int) -> list[Tensor]:
        return [_normal(heads, length, width), _normal(heads, length, width), _normal(rows, heads, length, width)]

    def head(rows: int, length: int) -> list[Tensor]:
        return [_normal(rows * length, heads * width), 0.02 * _normal(arguments.vocab_size, heads * width)]

    def labels(rows: int, length: int) -> dict[str, Any]:
        found = torch.randint(arguments.vocab_size, (rows * length,), generator=_generator("labels"))
        found[::7] = -100
        return {"labels": found}

    grouped = 2 if heads % 2 == 0 else 1
    return [
        Case("softmax", _softmax, _softmax_formula, projected(1), none),
        Case("softmax, documents", _softmax, _softmax_formula, projected(1), masked),
        Case("softmax, grouped heads", _softmax, _softmax_formula, projected(grouped), none),
        Case("taylor", taylor_attention, _taylor_formula, projected(1), none),
        Case("taylor, documents", taylor_attention, _taylor_formula, projected(1), masked),
        Case("prefix average", prefix_average, _prefix_formula, scored, none),
        Case("prefix average, documents", prefix_average, _prefix_formula, scored, masked),
        Case("fixed map", fixed_map_attention, _fixed_formula, fixed, lambda rows, length: {}),
        Case("cross-entropy", linear_cross_entropy, _loss_formula, head, labels),
    ]


def errors(case: Case, dtype: torch.dtype, arguments: Arguments) -> dict[str, dict[str, float]]:
    """Of the output and of the gradient of each input: `max`, and `relative` in the Euclidean norm."""
    inputs = [tensor.to(dtype) for tensor in case.inputs(arguments.rows, arguments.length)]
    constants = case.constants(arguments.rows, arguments.length)
    ours = _run(case.ours, [tensor.to(arguments.device) for tensor in inputs], constants)
    expected = _run(case.formula, [tensor.to(arguments.device, torch.float64) for tensor in inputs], constants)
    names = ["output", *(f"gradient {number}" for number in range(len(inputs)))]
    return {name: _error(a, b) for name, a, b in zip(names, ours, expected, strict=True)}


def seconds(case: Case, dtype: torch.dtype, arguments: Arguments) -> dict[str, float]:
    """Median time of a forward pass and of a forward and backward pass."""
    rows, length = arguments.timed_rows, arguments.timed_length
    inputs = [tensor.to(arguments.device, dtype).requires_grad_() for tensor in case.inputs(rows, length)]
    constants = _to(case.constants(rows, length), arguments.device)

    def forward() -> Tensor:
        with torch.no_grad():
            return case.ours(*inputs, **constants)

    gradient = torch.randn_like(forward())

    def both() -> None:
        torch.autograd.grad(case.ours(*inputs, **constants), inputs, gradient)

    return {
        "forward_seconds": _median_seconds(forward, arguments),
        "training_seconds": _median_seconds(both, arguments),
    }


def main() -> int:
    """Check and time every case in both precisions; 1 if an error is above its tolerance or a case failed."""
    arguments = parse(Arguments)
    results, table, bad = [], [], []
    for case in cases(arguments):
        for dtype, tolerance in TOLERANCES.items():
            precision = str(dtype).removeprefix("torch.")
            row: dict[str, Any] = {"case": case.name, "precision": precision, "tolerance": tolerance}
            try:
                row["errors"] = errors(case, dtype, arguments)
                row |= seconds(case, dtype, arguments)
                worst = max(error["relative"] for error in row["errors"].values())
                row["passed"] = worst <= tolerance  # a NaN does not pass
                largest = max(error["max"] for error in row["errors"].values())
                times = [f"{row[name] * 1e3:.2f}" for name in ("forward_seconds", "training_seconds")]
                shown = [f"{worst:.1e}", f"{largest:.1e}", *times]
            except Exception as error:  # the other cases go on
                row |= {"passed": False, "failure": f"{type(error).__name__}: {error}"}
                shown = [row["failure"].splitlines()[0][:60], "", "", ""]
            results.append(row)
            table.append([case.name, precision, *shown, "yes" if row["passed"] else "NO"])
            bad += [] if row["passed"] else [case.name]
            print(" | ".join(table[-1]), flush=True)
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
    columns = ["path", "precision", "worst relative error", "largest error", "forward, ms", "training, ms", "passed"]
    options = {name: str(value) for name, value in dataclasses.asdict(arguments).items() if name != "out"}
    write_result(arguments.out / "gpu_ops.json", {"options": options, "cases": results})
    (arguments.out / "gpu_ops.md").write_text(markdown_table(columns, table), encoding="utf-8")
    return 1 if bad else 0


def _softmax(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None) -> Tensor:
    documents = None if document_ids is None else Documents(document_ids, torch.empty_like(document_ids))
    return causal_attention(queries, keys, values, documents)


def _softmax_formula(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None) -> Tensor:
    keys, values = (_per_query_head(tensor, queries) for tensor in (keys, values))
    return reference.softmax_map(queries, keys, _per_head(document_ids)) @ values


def _taylor_formula(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None) -> Tensor:
    return reference.taylor_map(queries, keys, _per_head(document_ids)) @ values


def _prefix_formula(scores: Tensor, values: Tensor, document_ids: Tensor | None) -> Tensor:
    return reference.prefix_map(scores, _per_head(document_ids)) @ values


def _fixed_formula(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return reference.softmax_map(queries, keys) @ values


def _loss_formula(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(hidden @ weight.T, labels, reduction="sum")


def _per_head(document_ids: Tensor | None) -> Tensor | None:
    return None if document_ids is None else document_ids[:, None]


def _per_query_head(shared: Tensor, queries: Tensor) -> Tensor:
    return shared.repeat_interleave(queries.shape[1] // shared.shape[1], dim=1)


def _run(function: Function, inputs: Sequence[Tensor], constants: dict[str, Any]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves, **_to(constants, inputs[0].device))
    gradient = torch.randn(output.shape, dtype=torch.float64, generator=_generator("gradient")).to(leaves[0].dtype)
    gradient = gradient.bfloat16().to(output) if output.ndim else torch.ones_like(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def _error(ours: Tensor, expected: Tensor) -> dict[str, float]:
    difference = ours.double() - expected
    scale = float(expected.norm())
    return {"max": float(difference.abs().max()), "relative": float(difference.norm()) / (scale or math.inf)}


def _median_seconds(call: Callable[[], Any], arguments: Arguments) -> float:
    times = []
    for _ in range(arguments.repeats + 2):
        _synchronize(arguments.device)
        start = time.perf_counter()
        call()
        _synchronize(arguments.device)
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[arguments.repeats // 2]


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _to(constants: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in constants.items()}


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=_GENERATORS.setdefault("inputs", _generator("inputs")))


def _generator(purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(purpose.encode()))


_GENERATORS: dict[str, torch.Generator] = {}


if __name__ == "__main__":
    run(main)
