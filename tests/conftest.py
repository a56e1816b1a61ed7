"""What all tests share: one thread, a small packed corpus, made once, and ranks that stay up."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deconattn.data import PackConfig
from deconattn.data.packing.pack import pack
from deconattn.launch.ranks import VARIABLES
from deconattn.mixers.plugins import load_plugins
from tests.ranks import Ranks

# Tensors this small gain nothing from more threads and lose much where tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Triton kernels run in its interpreter where there is no GPU; it must know before it is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C, which some test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plugin", action="append", default=[], help="a variant's file, for the tests of every variant")


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are collected, so that they are parametrised with its variants."""
    load_plugins([Path(file) for file in config.getoption("--plugin")])


LONG_CASES = (
    "cost/test_generation.py::test_caches_hold_what_the_formulas_say[thirdparty,standard,thirdparty-gqa-bf16]",
    "cost/test_generation.py::test_caches_hold_what_the_formulas_say[thirdparty,standard,thirdparty-mha-bf16]",
    "cost/test_generation.py::test_caches_hold_what_the_formulas_say[staticemb,mlp,thirdparty,fixedseq,standard-mha-bf16]",
    "mixers/test_decoding.py::test_steps_from_any_prefill_are_the_whole_pass[thirdparty,thirdparty,thirdparty-static]",
    "data/packing/test_pack_resume.py::test_killed_at_any_moment[chosen]",
    "data/packing/test_pack_resume.py::test_killed_at_any_moment[val]",
    "ops/kernels/test_prefix_attention.py::test_operators[True]",
    "ops/kernels/test_prefix_attention.py::test_extreme_scores[False-True]",
    "ops/kernels/test_prefix_attention.py::test_float32[1-1-1-567-10-True-True]",
    "ops/kernels/test_prefix_attention.py::test_float32[2-4-2-91-24-True-True]",
    "ops/kernels/test_prefix_attention.py::test_half_precision[dtype0-True-True]",
    "ops/kernels/test_prefix_attention.py::test_any_strides[True]",
    "ops/kernels/test_taylor_tiles.py::test_half_precision[dtype1-4-2-543-64-True]",
    "ops/kernels/test_taylor_tiles.py::test_half_precision[dtype2-2-2-321-128-True]",
    "ops/kernels/test_taylor_tiles.py::test_float32[1-4-2-199-24-True]",
    "ops/kernels/test_taylor_tiles.py::test_float32[2-1-1-261-64-True]",
    "ops/kernels/test_taylor_tiles.py::test_operators[True]",
    "ops/kernels/test_fixed_map.py::test_operators[1]",
    "ops/kernels/test_fixed_map.py::test_operators[2]",
    "ops/kernels/test_fixed_map.py::test_half_precision[5-dtype6]",
    "ops/kernels/test_fixed_map.py::test_half_precision[1-dtype2]",
    "ops/kernels/test_fixed_map.py::test_half_precision[2-dtype3]",
    "ops/kernels/test_fixed_map.py::test_half_precision[3-dtype4]",
    "ops/kernels/test_fixed_map.py::test_half_precision[4-dtype5]",
    "ops/kernels/test_fixed_map.py::test_float32[5-2-1-129-32]",
    "launch/test_faults.py::test_a_folder_that_is_not_shared_is_refused",
    "launch/test_place.py::test_two_processes_are_one_run[srun python -m]",
    "mixers/test_decoding.py::test_steps_from_any_prefill_are_the_whole_pass[thirdparty,thirdparty,thirdparty-growing]",
    "ops/kernels/test_taylor_states.py::test_grouped_heads_and_documents",
    "parallel/test_parity.py::test_bf16_of_all_variants_in_two_models[TP2-rndemb, staticemb, fixedseq, nonapproximate; "
    "tied, QK norm, document masks]",
    "parallel/test_parity.py::test_bf16_of_all_variants_in_two_models[TP2-approximate, mlp, standard, staticemb; "
    "tied, QK norm, document masks]",
    "train/test_nonfinite.py::test_a_model_that_looks_ahead_is_refused_before_its_first_step",
    "train/test_resume.py::test_a_stop_in_the_middle_changes_nothing[3---tie-embeddings]",
    "train/test_resume.py::test_a_stop_in_the_middle_changes_nothing[3-]",
    "train/test_saving.py::test_each_rank_reads_and_writes_its_share[1]",
    "train/test_unwaited.py::test_numbers_are_those_of_deepspeeds_own_norms[--precision bf16]",
)
"""Cases of four seconds and more that shorter or other cases stand in for in the quick tests. Below tests/."""


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/") in LONG_CASES:
            item.add_marker(pytest.mark.slow)


TOOLS = ROOT / "tools"
DEMO = ROOT / "deconattn" / "data" / "demo" / "shakespeare.jsonl"

SMALL = (
    "--hidden-size 32 --intermediate-size 64 --num-hidden-layers 2 --num-attention-heads 2 --seq-len 32 "
    "--global-batch-size 4 --micro-batch-size 2 --steps 6 --eval-every 100 --eval-sequences 8 --save-every 100 "
    "--precision fp32"
).split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first third of the bundled corpus, packed with a SentencePiece vocabulary of 512."""
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "part.jsonl"
    lines = DEMO.read_text(encoding="utf-8").splitlines(keepends=True)
    text.write_text("".join(lines[: len(lines) // 3]), encoding="utf-8")
    out = folder / "packed"
    pack(PackConfig(inputs=(str(text),), tokenizer="train:512", out=out, workers=1, val_fraction=0.05))
    return out


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A world of one, so that trainings can run in this process."""
    from deconattn.parallel.process_group import start_distributed

    start_distributed()
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def small(corpus: Path) -> list[str]:
    """Flags of a training that takes a second."""
    return ["--data", str(corpus), *SMALL]


@pytest.fixture(scope="module")
def flags(corpus: Path) -> list[str]:
    """Flags of a training of 100 quick steps with a checkpoint every 20: time enough for something to happen."""
    return ["--data", str(corpus), *SMALL, "--steps", "100", "--save-every", "20", "--keep", "30"]


@pytest.fixture(scope="module")
def undisturbed(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of those flags to which nothing happens."""
    from tests.train.jobs import run_job

    run = tmp_path_factory.mktemp("undisturbed")
    run_job([*flags, "--save", str(run)])
    return run


@pytest.fixture
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what looks into this process's environment: as if no earlier test had made it a rank."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """ranks(n): n processes in one group, for all tests of a worker."""
    started: dict[int, Ranks] = {}

    def of(world_size: int) -> Ranks:
        if world_size not in started or started[world_size].closed:
            started[world_size] = Ranks(world_size)
        return started[world_size]

    yield of
    for group in started.values():
        group.close()
