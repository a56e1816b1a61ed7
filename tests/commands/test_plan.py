"""tools/plan.py as a user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deconattn.commands.plan import main
from deconattn.errors import UserError
from deconattn.mixers import zoo_names

ROOT = Path(__file__).parents[2]


def plan(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/plan.py"), *flags]
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)


def rows_of(output: str) -> dict[str, list[str]]:
    """Of a printed table, each line's cells by the first of them."""
    lines = ([cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│")
    return {name: cells for name, *cells in lines}


def test_every_variant_has_its_row() -> None:
    done = plan("--size", "500m")
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ ([\w-]+) +│ +([\d,]+) +│ +[\d,]+ │", done.stdout))
    assert rows["standard"] == rows["nonapproximate"] == "481,109,888"
    assert rows["mlp"] == "481,389,440"
    assert set(rows) == {
        "standard",
        "mlp",
        "approximate",
        "nonapproximate",
        "rndemb",
        "fixedseq",
        "staticemb",
        *zoo_names(),
    }
    assert "+279,552 (+0.0581%)" in done.stdout


def test_costs_of_a_layer_and_of_the_model() -> None:
    done = plan(
        *"--size 500m --pattern even --costs --seq-len 1024 --micro-batch-size 4 --precision fp32".split(),
        "--vocab-size=1000",
    )
    assert done.returncode == 0, done.stderr
    assert "vocabulary 1000" in done.stdout
    assert "One layer's mixer, 4 x 1024 tokens, fp32" in done.stdout
    layer, model = done.stdout.split("The model, pattern even, 4 x 1024 tokens, fp32")
    mixers, models = rows_of(layer), rows_of(model)
    assert set(mixers) == set(models) | {"feed-forward"}
    assert mixers["standard"][4:] == ["28.0 MiB", "0", "0"]  # keys and values of 4096 tokens, 896 wide
    assert mixers["fixedseq"][4:] == ["14.0 MiB", "3.29 GFLOP", "7.00 MiB"]
    assert mixers["mlp"][4:] == ["0", "0", "0"]
    assert models["standard"][4] == "672 MiB"
    assert models["fixedseq"][4] == "504 MiB"


def test_an_impossible_length_is_one_line() -> None:
    done = plan("--costs", "--seq-len", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["error: --seq-len is 0: it must be above zero"]


def test_a_wrong_size_is_one_line() -> None:
    done = plan("--size", "80m")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: unknown size '80m': choose one of tiny, 70m, 160m, 500m, 1.7b, 7b, 70b, "
        "and override its fields by flags"
    ]


def test_a_job_is_planned_and_a_topology_recommended() -> None:
    done = plan(*"--size 1.7b --gpus 64 --gpu-memory 80 --tp 4 --pp 2 --precision bf16 --costs".split())
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ ([^│]+?) +│ +([^│]+?) │", done.stdout))
    assert rows["layers"] == "0-14"
    assert rows["parameters"] == "230,293,248"
    for name in ("weights", "gradients", "optimiser states", "activations", "peak"):
        assert float(rows[f"{name}, GiB"]) > 0
    for name in ("for tp", "for ZeRO", "to stages"):
        assert float(rows[f"sent {name}, GiB a step"]) > 0
    assert "8 x 4 sequences of 2048 tokens on each of 8 replicas, 524,288 tokens" in done.stdout
    assert re.search(r"^step time: \d+ ms \(compute \d+%, .*bubble 1\d%", done.stdout, re.MULTILINE)
    assert re.search(r"^120,000 steps: [\d.]+ days$", done.stdout, re.MULTILINE)
    assert "of 80 GiB at the peak (stage 0," in done.stdout
    assert re.search(r"^recommended: --zero . --micro-batch-size 4\n  because no other ", done.stdout, re.MULTILINE)
    assert "The fastest that fit" in done.stdout
    assert done.stdout.index("recommended: ") < done.stdout.index("One layer's mixer, 4 x 2048 tokens, bf16")


def test_a_job_whose_ranks_share_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--size 70m --gpus 8 --cp 4 --seq-len 16384 --global-batch-size 8 --micro-batch-size 1 --zero 1"
    main(words.split())
    told = capsys.readouterr().out
    assert "One rank of 8: tp 1 x cp 4 x pp 1 x dp 2, ZeRO 1" in told
    assert "4 x 1 sequences of 16384 tokens on each of 2 replicas, 131,072 tokens" in told
    rows = dict(re.findall(r"│ ([^│]+?) +│ +([^│]+?) │", told))
    assert float(rows["sent for cp, GiB a step"]) > 0


def test_what_does_not_go_together_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in {
        "--dry-run": "--dry-run needs a job: give --gpus",
        "--dry-run --gpus 8 --sweep a.svg": "leave one out",
        "--sweep a.pdf": "give a name that ends in .svg or .png",
        "--gpus 8 --gpu v100": "--gpu v100: no such GPU here",
        "--gpus 8 --dry-run --tp 3": "--tp 3 does not divide the 4 attention heads",
        "--gpus 9 --dry-run --cp 3": "--cp 3 does not divide --seq-len",
    }.items():
        with pytest.raises(UserError, match=told):
            main(words.split())
    assert capsys.readouterr().out == ""


def test_a_topology_that_cannot_be_is_one_line() -> None:
    done = plan(*"--size 1.7b --gpus 64 --tp 4 --pp 3".split())
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "64 ranks are not a multiple of --tp 4 x --pp 3 = 12" in done.stderr
