"""Every Triton kernel compiled ahead of time for GPUs that this machine need not have, as a table.

    python benchmarks/kernels/compile_matrix.py                # 20 configurations of one or two minutes of a core each
    python benchmarks/kernels/compile_matrix.py --targets sm_120     # the others' results are kept

For each kernel and GPU: the shared memory that a program takes, bytes of registers that a thread spills, and the
matrix instructions. Fails where a kernel does not compile, takes more shared memory than the GPU has, spills more than
a bound, leaves its products to the plain cores, or has each wait for the one before.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kernels.compiled import SHARED_MEMORY, Compiled, compile_calls
from benchmarks.machine import RESULTS, markdown_table, write_result
from deconattn.cli import parse, run

HEAD_DIMS = (64, 128)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
SPILLS = {"bf16": 256, "fp32": 1024}
"""Most bytes of registers that a thread may spill."""
WITHOUT_PRODUCTS = (
    "columns_program",
    "delta_kernel",
    "log_normalisers_kernel",
    "logit_gradients_kernel",
    "rms_norm_kernel",
    "rms_norm_back_kernel",
    "rotation_kernel",
    "summary_kernel",
    "summary_back_kernel",
    "swiglu_kernel",
    "swiglu_back_kernel",
    "upstream_program",
)
"""Kernels that move and sum, and multiply no matrices."""


@dataclass(frozen=True)
class Options:
    """Compile every kernel for every GPU."""

    targets: tuple[str, ...] = TARGETS
    """Of sm_80, sm_86, sm_90, sm_100, sm_120 and gfx942."""
    out: Path = RESULTS
    """Folder of compile_matrix.json and .md."""


def calls(head_dim: str, dtype: str) -> None:
    """Every operation, both passes, on many programs and on few; without masks, and with masks and grouped heads."""
    from deconattn.ops.kernels import fixed_map, prefix_attention, rotation, swiglu, taylor_states, taylor_tiles

    size, heads = int(head_dim), 14

    def drawn(rows: int, count: int, length: int) -> Tensor:
        return torch.empty(rows, length, count, size, dtype=DTYPES[dtype]).transpose(1, 2)

    def call(module: object, rows: int, length: int, masked: bool) -> None:
        queries, keys = drawn(rows, heads, length), drawn(rows, 2 if masked else heads, length)
        ids = torch.zeros(rows, length, dtype=torch.long) if masked else None
        kept = module.forward(queries, keys, keys, ids)  # type: ignore[attr-defined]
        module.backward(queries, queries, keys, keys, *kept, ids)  # type: ignore[attr-defined]

    for masked in (False, True):
        call(prefix_attention, 4, 256, masked)
        call(prefix_attention, 1, 256, masked)  # so few heads that the length is cut
        call(taylor_tiles, 1, 256, masked)
        call(taylor_states, 1, 2 * taylor_states.chunk_length(size), masked)
    queries, keys, values = drawn(1, heads, 1536)[0], drawn(1, heads, 1536)[0], drawn(16, heads, 1536)
    kept = fixed_map.forward(queries, keys, values)
    fixed_map.backward(kept[0], queries, keys, values, *kept)
    gate, up = torch.empty(64, 2 * 19 * size, dtype=DTYPES[dtype]).chunk(2, dim=1)
    swiglu.backward(swiglu.forward(gate, up), gate, up)
    cos, sin = torch.empty(2, 1, 1, 256, size, dtype=DTYPES[dtype])
    for back in (False, True):
        rotation.rotation(drawn(4, heads, 256), drawn(4, 2, 256), cos, sin, back)
    rows(DTYPES[dtype])


def rows(dtype: torch.dtype) -> None:
    """What works on rows of any width: 50277 words of logits, in rows of 50304; norms of 896 channels."""
    from deconattn.ops.kernels import cross_entropy, rms_norm

    logits, targets = torch.empty(32, 50304, dtype=dtype), torch.zeros(32, dtype=torch.long)
    normalisers, _ = cross_entropy.log_normalisers(logits, targets, 50277)
    cross_entropy.logit_gradients_(logits, targets, normalisers, 50277)
    hidden, weight = torch.empty(32, 896, dtype=dtype), torch.empty(896, dtype=dtype)
    for other in (None, hidden):
        summed, normed, reciprocals = rms_norm.forward(hidden, other, weight, 1e-6)
        rms_norm.backward(normed, other, summed, weight, reciprocals)


def compiled(target: str, head_dim: int, dtype: str) -> list[Compiled]:
    """Every kernel of a configuration."""
    return compile_calls(__file__, "calls", target, str(head_dim), dtype)


def faults(target: str, dtype: str, kernels: list[Compiled]) -> list[str]:
    """What must not be: too much shared memory or spilled, products on the plain cores or one after the other."""
    wrong = []
    for kernel in kernels:
        if kernel.shared > SHARED_MEMORY[target]:
            wrong.append(f"{kernel.name}: {kernel.shared} of {SHARED_MEMORY[target]} bytes of shared memory")
        if bool(kernel.tensor_cores) == (kernel.name in WITHOUT_PRODUCTS):
            wrong.append(f"{kernel.name}: matrix instructions: {kernel.tensor_cores or 'none'}")
        if kernel.serialised:
            wrong.append(f"{kernel.name}: each wgmma waits for the one before")
        if kernel.spills > SPILLS[dtype]:
            wrong.append(f"{kernel.name}: a thread spills {kernel.spills} of at most {SPILLS[dtype]} bytes")
    return wrong


def main() -> int:
    """Compile, print, write after each target; 1 if anything is wrong."""
    options, failed = parse(Options), False
    for target in options.targets:
        rows, wrong = [], []
        configurations = list(product(HEAD_DIMS, DTYPES))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a process of its own
            found = list(pool.map(partial(compiled, target), *zip(*configurations, strict=True)))
        for (head_dim, dtype), kernels in zip(configurations, found, strict=True):
            wrong += [f"head_dim {head_dim} {dtype}: {fault}" for fault in faults(target, dtype, kernels)]
            rows += [{"head_dim": head_dim, "dtype": dtype} | asdict(kernel) for kernel in kernels]
        print("\n".join([f"{target}: {len(rows)} kernels", *wrong]), flush=True)
        failed = failed or bool(wrong)
        _write(options.out, target, {"faults": wrong, "kernels": rows})
    return 1 if failed else 0


def _write(folder: Path, target: str, found: dict[str, Any]) -> None:
    """The results, those of other targets kept as they are."""
    path = folder / "compile_matrix.json"
    old = json.loads(path.read_text(encoding="utf-8"))["targets"] if path.exists() else {}
    targets = {name: kept for name, kept in (old | {target: found}).items() if name in SHARED_MEMORY}
    write_result(path, {"targets": targets})
    order = [name for name in SHARED_MEMORY if name in targets]
    rows = [{"target": name} | row for name in order for row in targets[name]["kernels"]]
    path.with_suffix(".md").write_text("\n".join(_tables(rows)), encoding="utf-8")


def _tables(rows: list[dict]) -> Iterator[str]:
    """A table a configuration: kernels by GPUs."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    yield (
        "Kernels compiled ahead of time: KiB of shared memory that a program takes, of several specialisations the\n"
        "largest; the matrix instruction; and bytes of registers that a thread spills, if any. * where ptxas has each\n"
        "wgmma wait for the one before.\n"
    )
    limits = [f"{target} ({SHARED_MEMORY[target] // 1024} KiB)" for target in targets]
    for head_dim, dtype in product(HEAD_DIMS, DTYPES):
        mine = [row for row in rows if (row["head_dim"], row["dtype"]) == (head_dim, dtype)]
        yield f"## head_dim {head_dim}, {dtype}\n"
        names = dict.fromkeys((row["module"], row["name"]) for row in mine)
        cells = [[" ".join(name), *(_cell(mine, name, target) for target in targets)] for name in names]
        yield markdown_table(["kernel", *limits], cells)


def _cell(rows: list[dict], name: tuple[str, str], target: str) -> str:
    mine = [row for row in rows if (row["module"], row["name"], row["target"]) == (*name, target)]
    if not mine:
        return ""
    parts = [f"{max(row['shared'] for row in mine) / 1024:.0f}", *sorted({row["tensor_cores"] for row in mine} - {""})]
    if any(row["serialised"] for row in mine):
        parts[-1] += "*"
    if spills := max(row["spills"] for row in mine):
        parts.append(f"spills {spills}")
    return " ".join(parts)


if __name__ == "__main__":
    run(main)
