"""`packing/kill.py`: that it kills, resumes and compares as it says, with a packer of a few lines in place of ours."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.packing import kill as pack_kill
from benchmarks.packing.corpus import DEMO
from benchmarks.packing.kill import (
    Arguments,
    differences,
    finished_shards,
    killed,
    moments,
    repeated_shards,
    unfinished,
)
from deconattn.errors import UserError

PACKER = """
import os, sys, time
out, shards, mode = sys.argv[1], 30, sys.argv[2]
folder, name = os.path.split(out)
work = os.path.join(folder, f".{name}.partial", "result")
os.makedirs(work, exist_ok=True)
for number in range(shards):
    path = os.path.join(work, f"train-{number:05d}.arrow")
    if mode != "forgets" and os.path.exists(path):
        continue
    time.sleep(0.05)
    with open(f"{path}.new", "w") as file:
        file.write(str(os.getpid() if mode == "differs" else number))
    os.replace(f"{path}.new", path)
    if mode == "fails" and number == 10:
        sys.exit("no luck")
os.replace(work, out)
os.rmdir(os.path.dirname(work))
"""


@pytest.fixture
def packer(monkeypatch: pytest.MonkeyPatch) -> None:
    """--flags is how the packer behaves; it takes at least 1.5 s, less what is there already."""
    monkeypatch.setattr(
        Arguments, "pack", lambda self, out: [sys.executable, "-S", "-c", PACKER, str(out), self.flags or "well"]
    )


def arguments(**given: Any) -> Arguments:
    return Arguments(**({"inputs": ("x",), "tokenizer": Path("t.json"), "workers": 1} | given))


def test_moments_lie_within_an_undisturbed_run():
    for seed in range(50):
        found = moments(5, 100.0, seed)
        assert len(found) == 5 and min(found) >= 0
        assert found[0] >= 2 and sum(found) <= 95
    assert moments(5, 100.0, 1) == moments(5, 100.0, 1) != moments(5, 100.0, 2)
    assert moments(0, 100.0, 0) == []


def test_killed_and_resumed(packer: None, tmp_path: Path):
    """To all and to the first in turn; what was finished at a kill is the same file in the end."""
    work = unfinished(tmp_path / "packed")
    work.mkdir(parents=True)
    (work / "train-00000.arrow").write_text("0")  # of an earlier kill
    runs = killed(arguments(), tmp_path / "packed", [0.1, 0.1, 0.0])
    assert [row["ended_by"] for row in runs] == ["SIGKILL to all", "SIGKILL to the first", "SIGKILL to all", "itself"]
    assert not any(row["survivors"] for row in runs)
    counts = [len(row["finished"]) for row in runs]
    assert counts == sorted(counts) and counts[0] > 0 and counts[-1] == 30
    assert repeated_shards(runs[:-1], runs[-1]["finished"]) == 0
    assert not unfinished(tmp_path / "packed").parent.exists()


def test_shards_that_are_written_again_are_noticed(tmp_path: Path):
    folder = tmp_path / "packed"
    folder.mkdir()
    for name in ("train-00000.arrow", "train-00001.arrow", ".train-00002.arrow.partial"):
        (folder / name).write_text("x")
    before = finished_shards(folder)
    assert list(before) == ["train-00000.arrow", "train-00001.arrow"]
    assert repeated_shards([{"finished": before}, {"finished": before}], finished_shards(folder)) == 0
    (folder / "again").write_text("x")
    (folder / "again").replace(folder / "train-00001.arrow")
    assert repeated_shards([{"finished": before}], finished_shards(folder)) == 1


def test_a_run_that_ends_before_its_kill(packer: None, tmp_path: Path):
    runs = killed(arguments(), tmp_path / "packed", [60.0, 60.0])
    assert [row["ended_by"] for row in runs] == ["itself"]


def test_a_packer_that_fails(packer: None, tmp_path: Path):
    with pytest.raises(UserError, match="packing ended with code 1: no luck") as refused:
        killed(arguments(flags="fails"), tmp_path / "packed", [])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="more than --limit-s 0"):
        killed(arguments(limit_s=0.0), tmp_path / "slow", [])


def test_differences(tmp_path: Path):
    for folder in ("one", "other"):
        (tmp_path / folder / "below").mkdir(parents=True)
        (tmp_path / folder / "same").write_bytes(b"abc")
        (tmp_path / folder / "below" / "bytes").write_bytes(folder.encode()[:3])
    (tmp_path / "one" / "longer").write_bytes(b"abcd")
    (tmp_path / "other" / "longer").write_bytes(b"abc")
    (tmp_path / "other" / "only").touch()
    assert differences(tmp_path / "one", tmp_path / "other") == ["below/bytes", "longer", "only"]
    assert differences(tmp_path / "one", tmp_path / "one") == []


@pytest.mark.parametrize(("behaviour", "expected"), [("well", 0), ("differs", 1)])
def test_the_verdict(packer: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, behaviour: str, expected: int):
    monkeypatch.setattr(pack_kill, "moments", lambda kills, seconds, seed: [0.2] * kills)
    flags = ["--kills", "1", "--tokenizer", "t.json", "--flags", behaviour, "--out", str(tmp_path / "r")]
    monkeypatch.setattr("sys.argv", ["kill.py", "in", *flags, "--scratch", str(tmp_path), "--name", "test"])
    assert pack_kill.main() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    result = json.loads((tmp_path / "r" / "pack_kill-test.json").read_text())
    report = (tmp_path / "r" / "pack_kill-test.md").read_text()
    assert (result["kills"], result["files"], result["leftovers"]) == (1, 30, [])
    assert bool(result["differences"]) == bool(expected)
    assert ("30 files" in report) and ("byte-identical" in report) == (not expected)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"inputs": ()}, "no input"),
        ({"tokenizer": None}, "--tokenizer: give one"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"kills": -1}, "--kills -1: must be at least 0"),
    ],
)
def test_bad_input(flags: dict[str, Any], expected: str):
    with pytest.raises(UserError, match=expected):
        arguments(**flags)


@pytest.mark.slow
def test_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Our packer, killed three times."""
    flags = ["--kills", "3", "--tokenizer", "train:512", "--flags=--shard-tokens 50000 --val-fraction 0.1"]
    flags += ["--workers", "2", "--scratch", str(tmp_path), "--out", str(tmp_path / "r")]
    monkeypatch.setattr("sys.argv", ["kill.py", str(DEMO), *flags])
    assert pack_kill.main() == 0
