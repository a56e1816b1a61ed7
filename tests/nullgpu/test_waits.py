"""What a training step asks of a GPU, on the null GPU: how often the host waits for it, and what is reduced in."""

from pathlib import Path
from typing import Any

import pytest

from tests.nullgpu.build import build, missing
from tests.nullgpu.run import run

pytestmark = pytest.mark.slow

MODEL = (
    "--hidden-size 256 --intermediate-size 512 --num-hidden-layers 2 --num-attention-heads 4 --seq-len 256 "
    "--global-batch-size 12 --micro-batch-size 4"
).split()
CASES = [
    (variant, zero, "bf16" if zero else "fp32")
    for variant in ("standard", "rndemb", "nonapproximate")
    for zero in (0, 1, 2, 3)
]


@pytest.fixture(scope="module")
def found(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("nullgpu")
    flags = [
        ["--data", str(corpus), *MODEL, "--variant", variant, "--zero", str(zero), "--precision", precision]
        for variant, zero, precision in CASES
    ]
    answers = run(flags, build(folder / "gpu"), folder)
    return {(variant, zero): answer for (variant, zero, _), answer in zip(CASES, answers, strict=True)}


@pytest.mark.parametrize(("variant", "zero", "precision"), CASES)
def test_a_step(found: dict[tuple[str, int], dict[str, Any]], variant: str, zero: int, precision: str) -> None:
    step = found[variant, zero]
    assert step["waits_a_micro_batch"] == 0, step
    assert step["waits_a_step"] == 1, step
    assert set(step["reductions"]) <= {"fp32"}, step
