"""tools/reproduce.py as it is run: to its end, killed, stopped, beside another, with cells that fail."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from deconattn.commands.reproduce import main
from deconattn.errors import UserError
from deconattn.reproduction.folder import ReproductionFolder, check_same
from deconattn.reproduction.plans import Request
from tests.reproduction.conftest import SMALL, data_of, reproduce, start, tables_of

KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    code, errors = reproduce(out)
    assert code == 0, errors
    return out


def trainings(out: Path) -> Counter[str]:
    """How often each run was started."""
    return Counter((out / "started").read_text().split())


def test_everything_is_there(undisturbed: Path) -> None:
    data = data_of(undisturbed)
    assert data["jobs"] == {"done": 12, "all": 12} and data["failed"] == []
    rows = data["tables"]["1"]["rows"]
    assert [row["state"] for row in rows] == ["done"] * len(rows)
    assert [row["label"] for row in rows] == ["standard", *["mlp"] * 3, "random guess", "majority"]
    assert data["tables"]["4"]["columns"] == ["64", "256"]  # 512 is longer than the sequences that were trained on
    assert set(trainings(undisturbed).values()) == {1}
    assert data["runs"]["tiny-mlp-even"]["training"]["seconds"] == pytest.approx(8.192)


def test_again_it_does_nothing_and_says_the_same(undisturbed: Path) -> None:
    before = tables_of(undisturbed)
    code, errors = reproduce(undisturbed)
    assert code == 0 and "12 jobs, 12 of them done" in errors and "started" not in errors
    assert tables_of(undisturbed) == before


def test_ten_kills_change_nothing(undisturbed: Path, tmp_path: Path) -> None:
    moments = random.Random(5)
    for _ in range(KILLS):
        process = start(tmp_path)
        time.sleep(moments.uniform(0.1, 0.8))
        process.kill()
        process.communicate()
    assert reproduce(tmp_path)[0] == 0
    assert tables_of(tmp_path) == tables_of(undisturbed)
    assert data_of(tmp_path)["curves"] == data_of(undisturbed)["curves"]
    assert sum(trainings(tmp_path).values()) <= len(trainings(tmp_path)) + KILLS


@pytest.mark.slow
def test_a_stop_leaves_a_checkpoint_and_says_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(tmp_path)
        seen = trainings(tmp_path) if (tmp_path / "started").exists() else Counter()
        while not (tmp_path / "started").exists() or trainings(tmp_path) == seen:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert "to go on: python " in errors and "--table 1 4" in errors
        assert not list(tmp_path.glob("results/*/*.failed.json"))
    assert reproduce(tmp_path)[0] == 0
    assert tables_of(tmp_path) == tables_of(undisturbed)


def test_two_processes_share_the_work(undisturbed: Path, tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert set(trainings(tmp_path).values()) == {1}
    said = [process.stderr.read() for process in processes if process.stderr]
    done = [len(re.findall(r": done$", errors, re.MULTILINE)) for errors in said]
    assert sum(done) == 12 and min(done) > 0
    assert tables_of(tmp_path) == tables_of(undisturbed)


@pytest.mark.slow
def test_shards_do_each_their_runs(undisturbed: Path, tmp_path: Path) -> None:
    assert reproduce(tmp_path, "--shard", "2/3")[0] == 0
    first = set(trainings(tmp_path))
    assert len(first) == 1 and {row["state"] for row in data_of(tmp_path)["tables"]["4"]["rows"]} >= {"missing"}
    assert reproduce(tmp_path, "--shard", "1/3")[0] == 0
    assert reproduce(tmp_path, "--shard", "3/3")[0] == 0
    assert set(trainings(tmp_path).values()) == {1} and len(trainings(tmp_path)) == 3
    assert tables_of(tmp_path) == tables_of(undisturbed)


def test_what_fails_fails_alone_and_is_tried_again_when_asked(undisturbed: Path, tmp_path: Path) -> None:
    failing = {"FAKE_FAILS": "tiny-mlp-even:skip,tiny-mlp-uniform:train"}
    code, errors = reproduce(tmp_path, **failing)
    assert code == 1 and "5 of 12 jobs failed; to try them again: --retry-failed" in errors
    data = data_of(tmp_path)
    states = {
        (row["label"], row.get("pattern"), row.get("skipped")): row["state"] for row in data["tables"]["1"]["rows"]
    }
    assert states["mlp", "even", True] == states["mlp", "uniform", False] == "failed"
    assert states["mlp", "even", False] == states["standard", "uniform", False] == "done"
    assert [(one["run"], one["kind"]) for one in data["failed"]] == [
        ("tiny-mlp-uniform", "train"),
        ("tiny-mlp-even", "skip"),
    ]
    assert "no such thing" in data["failed"][1]["lines"][-1] and data["failed"][0]["reason"] == "exit code 1"
    assert "started" not in reproduce(tmp_path)[1]
    assert reproduce(tmp_path, "--retry-failed")[0] == 0
    assert tables_of(tmp_path) == tables_of(undisturbed)


def test_what_is_damaged_is_done_again(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    run = "tiny-mlp-uniform"
    (tmp_path / "results" / run / "train.json").write_text('{"outcome": {')
    (tmp_path / "results" / run / "evaluate.json").unlink()
    (tmp_path / "results" / run / "contexts" / "results.json").write_text("")
    (tmp_path / "results" / run / "contexts.json").write_text("[]")
    (tmp_path / "report.html").unlink()
    code, errors = reproduce(tmp_path)
    assert code == 0 and errors.count(": started") == 3
    assert tables_of(tmp_path) == tables_of(undisturbed) and (tmp_path / "report.html").is_file()


def test_other_flags_are_refused(undisturbed: Path) -> None:
    code, errors = reproduce(undisturbed, "--seed", "3")
    assert code == 2
    assert errors == (
        f"error: {undisturbed} was begun with --seed 1234 and the flags now say 3: give the flags that it was begun "
        "with, or another --out\n"
    )
    stored = Request(table=("1",))
    for changes, message in (
        ({"limit": 5}, r"--limit \(its default\) and the flags now say 5"),
        ({"patterns": ("odd", "even")}, r"--patterns \(its default\) and the flags now say odd even"),
    ):
        with pytest.raises(UserError, match=message):
            check_same(ReproductionFolder(undisturbed), stored, dataclasses.replace(stored, **changes))  # type: ignore[arg-type]


def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    process = start(tmp_path / "out", [*SMALL, "--dry-run", "--shard", "1/2"])
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and not (tmp_path / "out").exists()
    assert "3 runs, 6.00e+09 FLOPs" in shown
    last = next(line for line in shown.splitlines() if "tiny-mlp-even" in line)
    assert "50.0%" in last and "evaluate, skip, analyze" in last and "1/2" in last


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"(?i){tmp_path / 'out'}: no space left"):
        main(["--out", str(tmp_path / "out"), *SMALL])


def test_render_needs_a_reproduction(tmp_path: Path, undisturbed: Path) -> None:
    code, errors = reproduce(tmp_path / "none", "--render")
    assert code == 2 and "holds no reproduction; check --out" in errors
    (undisturbed / "report.md").unlink()
    assert reproduce(undisturbed, "--render")[0] == 0 and (undisturbed / "report.md").is_file()


def test_the_exact_commands_are_kept(undisturbed: Path) -> None:
    result = json.loads((undisturbed / "results/tiny-mlp-even/skip.json").read_text())
    assert (
        "--skip-variant-layers" in result["command"]
        and result["command"] in (undisturbed / "logs/tiny-mlp-even.skip.log").read_text()
    )
    commands = data_of(undisturbed)["runs"]["tiny-mlp-even"]["commands"]
    assert commands["skip"] == result["command"] and "--resume" not in commands["train"]
    contexts = data_of(undisturbed)["runs"]["tiny-mlp-uniform"]["commands"]["contexts"]
    assert contexts.endswith("--tasks wikitext --context-lengths 64,256")
