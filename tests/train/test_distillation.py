"""Trainings that learn from a teacher, with what is frozen: the same on every topology, and after a stop."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deconattn.checkpoint.format import Checkpoint, open_checkpoint, read_checkpoint
from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.launch.preflight import check_flags
from tests.conftest import ROOT, SMALL
from tests.ranks import Ranks
from tests.train.conftest import losses, rows
from tests.train.jobs import run_job, train

PATTERN = ["--pattern", "fixedseq,mlp"]
TAUGHT = ["--distill", "layer:2,logits:2,lm", "--distill-temperature", "2", "--freeze", "model.embed_tokens.*@3"]
# With the usual 1e-8 the first updates are as good as signs of gradients, and turn where those are all rounding.
TAUGHT += ["--adam-eps", "1e-4"]


@pytest.fixture(scope="module")
def teacher(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    flags = ["--pattern", "fixedseq,standard", "--initializer-range", "0.2", "--steps", "2", "--save", str(run)]
    run_job([*SMALL, "--data", str(corpus), *flags])
    return run


@pytest.fixture
def taught(teacher: Path, corpus: Path) -> list[str]:
    """Six steps: two a lesson."""
    start = ["--teacher", str(teacher), "--init-from", str(teacher), "--initializer-range", "0.2"]
    return [*SMALL, "--data", str(corpus), *PATTERN, *TAUGHT, *start]


@pytest.fixture(scope="module")
def alone(teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of those flags on one rank, with every checkpoint."""
    run = tmp_path_factory.mktemp("alone") / "run"
    start = ["--teacher", str(teacher), "--init-from", str(teacher), "--initializer-range", "0.2"]
    every = ["--save-every", "1", "--keep", "9", "--save", str(run)]
    run_job([*SMALL, "--data", str(corpus), *PATTERN, *TAUGHT, *start, *every]).engine.destroy()
    return run


def step(run: Path, number: int) -> Checkpoint:
    return read_checkpoint(run / "checkpoints" / f"step-{number}")


def changed(before: Checkpoint, after: Checkpoint, kind: str = "weights") -> set[str]:
    old, new = dict(before.tensors(kind)), dict(after.tensors(kind))
    return {name for name, value in new.items() if not torch.equal(value, old[name])}


def test_lessons_in_order(alone: Path, teacher: Path) -> None:
    told = [(row["step"], row["objective"]) for row in rows(alone) if "loss" in row]
    assert told == [(1, "layer"), (2, "layer"), (3, "logits"), (4, "logits"), (5, "lm"), (6, "lm")]
    found = losses(alone)
    assert found[2] < found[1] < 3, "relative to the teacher's output"
    assert found[5] > 4 > found[3] > 0, "cross-entropy, then a divergence"


def test_what_is_frozen_stays_to_the_bit(alone: Path, teacher: Path) -> None:
    """The layers' lesson moves mixers alone; the embedding waits for one step more."""
    states = [open_checkpoint(teacher), *(step(alone, number) for number in range(1, 7))]
    mixers = {name for name in states[1].weights() if ".self_attn." in name}
    start = dict(states[0].tensors("weights"))
    for number in (1, 2):
        weights = dict(states[number].tensors("weights"))
        shared = {name for name in weights if name in start and ".self_attn." not in name}
        assert all(torch.equal(weights[name], start[name]) for name in shared), number
    assert changed(states[1], states[2]) <= mixers
    assert {name for name in changed(states[1], states[2]) if "layers.1.self_attn" in name}
    third = changed(states[2], states[3])
    assert "model.embed_tokens.weight" not in third and "lm_head.weight" in third
    assert "model.embed_tokens.weight" in changed(states[3], states[4])
    assert not any(dict(states[3].tensors("exp_avg_sq"))["model.embed_tokens.weight"].flatten())
    assert states[6].progress.frozen_steps == {"2": 2, "3": 3}


@pytest.mark.parametrize(
    ("world", "flags"),
    [
        (2, "--tp 2"),
        (2, "--zero 3"),
        (2, "--cp 2"),
        pytest.param(2, "--tp 2 --sequence-parallel", marks=pytest.mark.slow),
        pytest.param(2, "--zero 0", marks=pytest.mark.slow),
        pytest.param(2, "--zero 1", marks=pytest.mark.slow),
        pytest.param(2, "--zero 2", marks=pytest.mark.slow),
        pytest.param(1, "--zero 2 --recompute layer", marks=pytest.mark.slow),
        pytest.param(1, "--zero 3 --micro-batch-size 1", marks=pytest.mark.slow),
        pytest.param(2, "--tp 2 --zero 3", marks=pytest.mark.slow),
    ],
)
def test_any_topology_has_the_same_losses(
    alone: Path, taught: list[str], tmp_path: Path, ranks: Callable[[int], Ranks], world: int, flags: str
) -> None:
    run = tmp_path / "run"
    arguments = [*taught, *flags.split(), "--save-every", "2", "--save", str(run)]
    assert ranks(world)(train, arguments=arguments) is None
    for name in ("loss", "grad_norm"):
        found = [row[name] for row in rows(run) if "loss" in row]
        assert found == pytest.approx([row[name] for row in rows(alone) if "loss" in row], rel=2e-5), name
    assert changed(step(alone, 1), step(run, 2)) >= changed(step(alone, 1), step(alone, 2))
    assert not any(".self_attn." not in name for name in changed(step(alone, 1), step(run, 2))), "frozen to the bit"


@pytest.mark.parametrize("flags", ["", pytest.param("--precision bf16 --zero 1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stop_in_any_lesson_changes_nothing(
    alone: Path, taught: list[str], tmp_path: Path, stop: int, flags: str
) -> None:
    whole, run = alone, tmp_path / "run"
    if flags:
        whole = tmp_path / "whole"
        run_job([*taught, *flags.split(), "--save", str(whole)]).engine.destroy()
    run_job([f"stop={stop}", *taught, *flags.split(), "--save", str(run)]).engine.destroy()
    assert open_checkpoint(run).step == stop
    run_job(["--save", str(run), "--resume"]).engine.destroy()
    assert losses(run) == losses(whole)
    first, second = open_checkpoint(whole), open_checkpoint(run)
    assert second.progress == first.progress
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        assert not changed(first, second, kind)


@pytest.mark.parametrize(
    "flags",
    [
        "--zero 0",
        "--zero 2",
        *(
            pytest.param(flags, marks=pytest.mark.slow)
            for flags in (
                "--zero 3",
                "--zero 1 --precision bf16",
                f"--deepspeed-config {ROOT}/ds_configs/zero2_offload.json",
                f"--deepspeed-config {ROOT}/ds_configs/zero3_offload.json",
            )
        ),
    ],
)
def test_adamw_counts_from_when_parameters_are_let_go(small: list[str], tmp_path: Path, flags: str) -> None:
    words = [*small, *flags.split(), "--freeze", "*.mlp.*@2", "model.norm.weight", "--save", str(tmp_path / "run")]
    trainer = run_job([*words, "--steps", "5"])
    counts = {}
    for partition, group in trainer.engine.state._partitions():
        counts[group["until"]] = int(trainer.engine.state._base.state[partition]["step"])
    assert {until: count for until, count in counts.items() if until < 10} == {0: 5, 2: 3}
    assert counts[max(counts)] == 0
    assert torch.equal(open_checkpoint(tmp_path / "run").weights()["model.norm.weight"], torch.ones(32))
    trainer.engine.destroy()


def test_a_mixer_of_another_variant_is_new_with_its_old_weights(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    words = ["--init-from", str(teacher), "--pattern", "fixedseq,approximate", "--freeze", "shared@2"]
    words = [*SMALL, "--data", str(corpus), *words, "--save-every", "1", "--keep", "9", "--save", str(tmp_path / "run")]
    run_job(["stop=1", *words]).engine.destroy()
    run_job(["--save", str(tmp_path / "run"), "--resume"]).engine.destroy()
    moved = changed(open_checkpoint(teacher), step(tmp_path / "run", 2))
    assert moved and all(name.startswith("model.layers.1.self_attn.") for name in moved)
    assert "lm_head.weight" in changed(step(tmp_path / "run", 2), step(tmp_path / "run", 3))


def test_a_teacher_is_needed_while_it_teaches(taught: list[str], teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = [str(tmp_path / "copy") if word == str(teacher) else word for word in taught]
    shutil.copytree(teacher, tmp_path / "copy")
    run_job(["stop=3", *given, "--save", str(run)]).engine.destroy()
    (tmp_path / "copy").rename(tmp_path / "elsewhere")
    resume = ["--save", str(run), "--resume"]
    with pytest.raises(UserError, match="--teacher .*copy: no such folder"):
        check_flags(parse_training_flags(resume))
    run_job(["stop=5", *resume, "--teacher", str(tmp_path / "elsewhere")]).engine.destroy()
    shutil.rmtree(tmp_path / "elsewhere")
    check_flags(parse_training_flags(resume))
    run_job(resume).engine.destroy()
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]


def test_refusals(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    def refused(words: str, pattern: str) -> None:
        given = [*SMALL, "--data", str(corpus), "--save", str(tmp_path / "run"), *words.split()]
        with pytest.raises(UserError, match=pattern) as told:
            check_flags(parse_training_flags(given))
        assert "\n" not in str(told.value)

    by = f"--teacher {teacher}"
    refused(by, "--teacher goes with --distill")
    refused("--distill lm", "--distill goes with --teacher")
    refused(f"{by} --distill layers:2,lm", "'layers' is none of layer, logits, lm")
    refused(f"{by} --distill layer,lm", "how long is layer")
    refused(f"{by} --distill layer:x,lm", "above zero")
    refused(f"{by} --distill lm:2,layer", "the order is layer, logits, lm")
    refused(f"{by} --distill layer:2,lm:3", "lm is the last, until the run ends: leave :3 out")
    refused(f"{by} --distill layer:6,lm", "would begin after step 6, and the run has 6")
    refused(f"{by} --distill logits --pp 2", "--distill does not go with --pp 2")
    refused(f"{by} --distill logits --optimizer muon", "--distill does not go with --optimizer muon")
    refused(f"{by} --distill logits --distill-temperature 0", "--distill-temperature is 0")
    refused(f"{by} --distill logits --vocab-size 640", "predicts 512 words and the model 640: give --vocab-size 512")
    refused(f"{by} --distill layer --hidden-size 64", "has hidden_size 32 and the model 64")
    refused(f"--teacher {tmp_path}/none --distill lm", "none: no such folder")
    refused("--freeze model.*@0", "--freeze model.*@0: give a pattern")
    refused("--freeze shared", "--freeze shared is what --init-from gave")
    refused("--freeze layers.0", "no parameter's name, as model.embed_tokens.weight is one")
    refused("--freeze *", "leaves nothing to train")


def test_lessons_by_tokens(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    from deconattn.config.healing import lessons

    words = [*SMALL, "--data", str(corpus), "--teacher", str(teacher), "--distill", "layer:200t,logits:1,lm"]
    assert [lesson.first for lesson in lessons(parse_training_flags(words))] == [0, 2, 3]  # 128 tokens a step
