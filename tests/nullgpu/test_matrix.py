"""What a training step asks of a GPU, on the null GPU: each option, ZeRO stage and topology against each variant.

Bounds are what was counted: a change that asks for less is to lower them.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.nullgpu.build import build, missing
from tests.nullgpu.cases import Case, of_every_variant, of_topologies, planned
from tests.nullgpu.run import run, run_all_ranks

pytestmark = pytest.mark.slow

SIZE, LAYERS = "70m", 2
NEAR = 0.05
"""How far the planner may be off, relative."""
MIXING = {"standard": "attention", "staticemb": "attention", "mlp": ""}
"""Kind of the kernels that a variant mixes by, where that is not our own ("ours")."""
Answers = dict[Case, dict[str, Any]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("nullgpu")
    return build(folder / "gpu") | {"TRITON_CACHE_DIR": str(folder / "triton")}


@pytest.fixture(scope="module")
def found(corpus: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    cases = of_every_variant()
    trainings = [case.words(SIZE, corpus, LAYERS) for case in cases]
    answers = run(trainings, environment, tmp_path_factory.mktemp("one") / "runs")
    return dict(zip(cases, answers, strict=True))


@pytest.mark.parametrize("case", of_every_variant(), ids=str)
def test_a_step(found: Answers, corpus: Path, case: Case) -> None:
    step = found[case]
    check_waits_and_formats(step, case)
    assert not step["breaks"], step
    assert not step["recompiled"], step
    assert (step["compiled"] > 0) == ("compile" in case.option), step
    assert not [line for line in step["said"] if line.startswith("warning:")], step
    kind = MIXING.get(case.variant, "ours")
    assert not kind or step["launches"].get(kind), step
    if "compile" not in case.option:  # what a compiled layer keeps is Inductor's choice
        assert step["peak_gib"] == pytest.approx(planned(case.words(SIZE, corpus, LAYERS), 1), rel=NEAR), step


SEVERAL = [case for ranks in (2, 4) for case in of_topologies(ranks)]


@pytest.fixture(scope="module")
def found_of_several(
    corpus: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[Case, list[dict[str, Any]]]:
    """Each case's answers, one a rank."""
    found: dict[Case, list[dict[str, Any]]] = {}
    for ranks in (2, 4):
        cases = of_topologies(ranks)
        trainings = [case.words(SIZE, corpus, LAYERS) for case in cases]
        every = run_all_ranks(trainings, environment, tmp_path_factory.mktemp(f"of-{ranks}") / "runs", ranks)
        found |= dict(zip(cases, map(list, zip(*every, strict=True)), strict=True))
    return found


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_several_ranks(found_of_several: dict[Case, list[dict[str, Any]]], corpus: Path, case: Case) -> None:
    for rank, step in enumerate(found_of_several[case]):
        check_waits_and_formats(step, case)
        plan = planned(case.words(SIZE, corpus, LAYERS), case.ranks, rank)
        assert step["peak_gib"] == pytest.approx(plan, rel=NEAR), (rank, step)


def check_waits_and_formats(step: dict[str, Any], case: Case) -> None:
    # On several ranks DeepSpeed's ZeRO-3 lets so many gatherings be under way and no more, since each takes memory.
    assert step["waits_a_micro_batch"] <= (2 if case.stage == 3 and case.ranks > 1 else 0), (case, step)
    assert step["waits_a_step"] <= 1, (case, step)
    # What tensor-parallel ranks add up are activations, in their own format; gradients are in fp32.
    activations = {"16-bit"} if case.stage and "tp" in case.topology else set()
    assert set(step["reductions"]) <= {"fp32"} | activations, (case, step)
