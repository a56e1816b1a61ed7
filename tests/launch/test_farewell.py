"""What a run on the bundled corpus ends with."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from deconattn.config.command_line import parse_training_flags
from deconattn.launch import farewell
from deconattn.launch.farewell import bid_farewell, is_recipe

RUN = Path(__file__).parents[1] / "formats" / "checkpoint-3"
"""Five steps of a model of two layers; here it stands for one that saw the bundled corpus."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def test_a_curve_a_text_and_commands(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bid_farewell(parse_training_flags("--variant nonapproximate --steps 5 --pattern 1:1".split()), folder)
    said = capfd.readouterr().err
    assert "training loss, nats a token" in said and "this run" in said
    assert "what it makes of 'ROMEO:'" in said
    assert f"{folder} --prompt" in said and f"--variant standard --pattern uniform --save {folder}-standard" in said
    assert "three seeds" not in said, "five steps are another recipe"


def test_what_it_proposes_differs_in_the_variant_alone(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bid_farewell(parse_training_flags("--variant nonapproximate --steps 5 --pattern 1:1".split()), folder)
    [line] = [line for line in capfd.readouterr().err.splitlines() if f"--save {folder}-standard" in line]
    ours = parse_training_flags(["--config", str(folder / "config.json")])
    theirs = parse_training_flags(line[line.index("--config") :].split())
    assert theirs.model == dataclasses.replace(ours.model, variant="standard", pattern="uniform")
    assert (theirs.data, theirs.optimization) == (ours.data, ours.optimization)


def test_the_recipe_has_its_stored_losses_beside(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = {"step": 300, "val_loss": 4.5}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    bid_farewell(parse_training_flags("--variant nonapproximate --pattern even".split()), folder)
    said = capfd.readouterr().err
    assert "standard, three seeds" in said and "three seeds: 4.500" in said
    assert "  standard uniform: " in said and "  nonapproximate even: " in said


def test_another_corpus_has_no_farewell(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = parse_training_flags([])
    bid_farewell(dataclasses.replace(flags, data=dataclasses.replace(flags.data, data=("corpus",))), folder)
    assert capfd.readouterr() == ("", "")


def test_what_goes_wrong_is_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "checkpoints")
    bid_farewell(parse_training_flags([]), folder)
    assert capfd.readouterr().err.splitlines()[-1].startswith("note: no closing picture: ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--variant fixedseq --pattern 1:3 --seed 7 --save x --tensorboard", True),
        ("--size tiny --precision fp32", True),
        ("--steps 299", False),
        ("--hidden-size 64", False),
        ("--size 70m", False),
        ("--seq-len 128", False),
    ],
)
def test_is_recipe(words: str, expected: bool) -> None:
    assert is_recipe(parse_training_flags(words.split())) == expected


def test_every_variant_of_the_paper_is_stored_with_three_seeds() -> None:
    stored = json.loads((Path(farewell.__file__).parent / "demo_recipe.json").read_text(encoding="utf-8"))
    variants = "standard mlp approximate nonapproximate rndemb fixedseq staticemb".split()
    models = {f"{name} {pattern}" for name in variants for pattern in ("uniform", "even")} - {"standard even"}
    assert set(stored["val_loss"]) == models
    assert all(len(losses) == 3 for losses in stored["val_loss"].values())
    steps = [step for step, _ in stored["standard"]]
    assert steps == sorted(steps)
    assert 290 < steps[-1] <= parse_training_flags([]).total_steps
