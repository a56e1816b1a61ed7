"""Batch warm-up and phases: the same run whatever the micro-batch and the ranks, and wherever it is cut."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconattn.checkpoint.format import open_checkpoint
from deconattn.config.command_line import parse_training_flags
from deconattn.data import PackConfig, SampleStream, TokenCorpus
from deconattn.data.loading.phases import Streams, connect
from deconattn.data.packing.pack import pack
from deconattn.errors import UserError
from deconattn.launch.preflight import check_flags
from deconattn.train.inputs import TrainingData
from tests.conftest import DEMO
from tests.ranks import Ranks
from tests.train.conftest import losses, rows, validation_losses
from tests.train.jobs import run_job, train
from tests.train.test_resume import same_state

WARM_UP = "--batch-warmup-start 2 --batch-warmup-steps 2 --micro-batch-size 1"
PHASES = "--phase 2 seq_len=48 global_batch_size=2 micro_batch_size=1 --phase 4 lr=1e-4 data={other}:2 data={corpus}"


@pytest.fixture(scope="module")
def other(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second corpus, with the first one's tokenizer."""
    out = tmp_path_factory.mktemp("other") / "packed"
    tokenizer = TokenCorpus(corpus).tokenizer_path
    lines = DEMO.read_text().splitlines()
    text = out.with_name("other.jsonl")
    text.write_text("\n".join(lines[len(lines) // 2 : len(lines) * 2 // 3]))
    pack(PackConfig(inputs=(str(text),), tokenizer=str(tokenizer), out=out, workers=1, val_fraction=0.05))
    return out


@pytest.fixture
def phased(small: list[str], corpus: Path, other: Path) -> list[str]:
    return [*small, *PHASES.format(other=other, corpus=corpus).split(), "--variant", "fixedseq", "--pattern", "1:1"]


def norms(run: Path) -> list[float]:
    return [row["grad_norm"] for row in rows(run) if "loss" in row]


def assert_cut_alike(
    flags: list[str], stops: tuple[int, ...], folder: Path, job: Callable[[list[str]], object]
) -> None:
    whole, cut = folder / "whole", folder / "cut"
    job([*flags, "--save", str(whole)])
    job([f"stop={stops[0]}", *flags, "--save", str(cut)])
    for stop in (*(f"stop={stop}" for stop in stops[1:]), None):
        job([*([stop] if stop else []), "--save", str(cut), "--resume"])
    assert losses(cut) == losses(whole)
    assert norms(cut) == norms(whole)
    assert validation_losses(cut) == validation_losses(whole)
    assert same_state(whole / "checkpoints/step-6", cut / "checkpoints/step-6")


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["0", "1", "2", "3"])
def test_a_warm_up_that_is_cut(small: list[str], tmp_path: Path, zero: str) -> None:
    assert_cut_alike([*small, *WARM_UP.split(), "--zero", zero], (1, 3), tmp_path, run_job)
    told = [(row["global_batch_size"], row["tokens"]) for row in rows(tmp_path / "cut") if "loss" in row]
    assert told == [(2, 64), (2, 128), (4, 256), (4, 384), (4, 512), (4, 640)]


@pytest.mark.parametrize("zero", ["0", *(pytest.param(zero, marks=pytest.mark.slow) for zero in "123")])
def test_gradients_are_of_the_batch_that_there_is(small: list[str], tmp_path: Path, zero: str) -> None:
    """Steps of 2, then 4 sequences, in micro-batches of 1 and of 2: an accumulation that does not scale would show."""
    for micro in ("1", "2"):
        run_job(
            [*small, *WARM_UP.split(), "--zero", zero, "--micro-batch-size", micro, "--save", str(tmp_path / micro)]
        )
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-5)
    assert norms(tmp_path / "1") == pytest.approx(norms(tmp_path / "2"), rel=1e-4)


@pytest.mark.parametrize("zero", ["0", *(pytest.param(zero, marks=pytest.mark.slow) for zero in "123")])
def test_phases_that_are_cut(phased: list[str], tmp_path: Path, zero: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert_cut_alike([*phased, "--zero", zero], (1, 2, 3, 5), tmp_path, run_job)
    said = capfd.readouterr().err
    assert "phase 1, from step 3: seq_len=48 global_batch_size=2 micro_batch_size=1" in said
    assert "phase 2, from step 5: data=" in said
    told = [(row["phase"], row["tokens"]) for row in rows(tmp_path / "cut") if "loss" in row]
    assert told == [(0, 128), (0, 256), (1, 352), (1, 448), (2, 544), (2, 640)]
    rates = [row["learning_rate"] for row in rows(tmp_path / "cut") if "loss" in row]
    assert rates[4] < rates[3] / 2
    config = json.loads((tmp_path / "cut/config.json").read_text())
    assert config["model"]["max_position_embeddings"] == 48
    assert [len(each) for each in config["phase_data"].values()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--zero 1", "--tp 2", "--pp 2", "--zero 3"])
def test_two_ranks_see_the_same_phases(
    phased: list[str], tmp_path: Path, ranks: Callable[[int], Ranks], flags: str
) -> None:
    run_job([*phased, *WARM_UP.split()[:4], "--micro-batch-size", "1", "--save", str(tmp_path / "one")])

    def two(words: list[str]) -> None:
        assert ranks(2)(train, arguments=words) is None

    words = [*phased, *WARM_UP.split()[:4], "--micro-batch-size", "1", *flags.split()]
    assert_cut_alike(words, (3,), tmp_path, two)
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_what_has_been_read_cannot_be_changed(phased: list[str], tmp_path: Path, other: Path) -> None:
    run_job(["stop=3", *phased[: phased.index("--variant")], "--save", str(tmp_path / "run")])
    resume = ["--save", str(tmp_path / "run"), "--resume"]
    for words, message in (
        (["--phase", "2"], "change what step 3 took"),
        (["--phase", "1", "global_batch_size=2"], "change what step 2 took"),
        (["--phase", "2", "seq_len=48", "global_batch_size=2", f"data={other}"], "the run has 0 corpora but --phase 2"),
    ):
        with pytest.raises(UserError, match=message):
            run_job([*resume, *words])
    run_job([*resume, "--phase", "4", "--phase", "5", "lr=1e-6"])  # what is still to come may change
    found = [row["learning_rate"] for row in rows(tmp_path / "run") if "loss" in row]
    assert found[5] < 1e-6 < found[4]


def test_a_trained_model_goes_on_in_longer_sequences(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path)])
    run_job(["--save", str(tmp_path), "--resume", "--steps", "8", "--phase", "6", "seq_len=64", "micro_batch_size=1"])
    assert [row["tokens"] for row in rows(tmp_path) if "loss" in row][-2:] == [6 * 128 + 256, 6 * 128 + 512]
    shutil.rmtree(tmp_path / "checkpoints/step-8")


@pytest.mark.parametrize("variant", ["rndemb", "fixedseq"])
@pytest.mark.parametrize("zero", ["0", pytest.param("3", marks=pytest.mark.slow)])
def test_a_fixed_stream_is_the_one_of_a_run_that_knew_of_the_length(
    small: list[str], tmp_path: Path, variant: str, zero: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*small, "--variant", variant, "--pattern", "1:1", "--zero", zero, "--lr-schedule", "constant"]
    later = ["--steps", "8", "--phase", "6", "seq_len=64", "micro_batch_size=1"]
    run_job([*words, *later, "--save", str(tmp_path / "whole")])
    run_job([*words, "--save", str(tmp_path / "longer")])
    capfd.readouterr()
    run_job(["--save", str(tmp_path / "longer"), "--resume", *later])
    said = capfd.readouterr().err
    name, way = {
        "rndemb": ("model.fixed_embeddings", "are drawn on by --seed 1234"),
        "fixedseq": ("model.fixed_ids", "follow in the corpus"),
    }[variant]
    step = tmp_path / "longer/checkpoints/step-6"
    assert f"{name} goes on: its first 32 positions are those of {step}, the other 32 {way}" in said
    assert losses(tmp_path / "longer") == losses(tmp_path / "whole")
    assert same_state(tmp_path / "whole/checkpoints/step-8", tmp_path / "longer/checkpoints/step-8")


def test_a_fixed_text_too_short_for_a_later_phase_is_refused_by_its_length(small: list[str], tmp_path: Path) -> None:
    file, run = tmp_path / "text.txt", tmp_path / "run"
    file.write_text("To be, or not to be, that is the question. " * 3)
    run_job([*small, "--steps", "1", "--variant", "fixedseq", "--fixed-text", str(file), "--save", str(run)])
    later = ["--save", str(run), "--resume", "--steps", "2", "--phase", "1", "seq_len=128", "micro_batch_size=1"]
    with pytest.raises(UserError, match=r"text.txt has \d+ tokens, fewer than the 128 of a sequence"):
        check_flags(parse_training_flags(later))
    file.write_text("To be, or not to be, that is the question. " * 20)
    assert check_flags(parse_training_flags(later)).notes == []
    run_job(later)
    flags = parse_training_flags(["--save", str(run), "--resume"])
    stream = open_checkpoint(run).weights()["model.fixed_ids"]
    assert len(stream) == 128 and stream.equal(TrainingData(flags.data.data, flags).fixed_ids())


def test_a_corpus_goes_on_where_it_was_left(corpus: Path, other: Path) -> None:
    one, two = TokenCorpus(corpus), TokenCorpus(other)

    def stream(length: int, *corpora: tuple[TokenCorpus, float]) -> SampleStream:
        return SampleStream(corpora, length, seed=7)

    alone = stream(32, (one, 1.0))
    size = alone.num_samples
    read = size // 3
    first, second = stream(32, (one, 1.0)), stream(32, (two, 1.0), (one, 1.0))
    third = stream(16, (one, 1.0))
    connect([first, second, third], [read, 2 * (size - read)], [["one"], ["two", "one"], ["one"]])
    both = Streams([first, second, third], [0, read, read + 2 * (size - read)])
    seen = [row.tobytes() for row in both.arrays(range(read), False)[0]]
    samples = both.arrays(range(read, read + 2 * (size - read)), False)[0]
    of_one = {row.tobytes() for row in alone.arrays(range(size), False)[0]}
    seen += [row.tobytes() for row in samples if row.tobytes() in of_one]
    assert len(seen) == len(set(seen)) == size, "each sample of the pass once, over both"
    begun = both.arrays(range(read + 2 * (size - read), read + 2 * (size - read) + 4), False)
    assert begun.shape == (2, 4, 16)
    assert not np.array_equal(begun, stream(16, (one, 1.0)).arrays(range(4), False)), "another pass, in another order"
