"""From short sequences to long ones: what is trained with what, and the whole way at toy dimensions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import long_sequences
from benchmarks.long_sequences import Arguments, models
from deconattn.config.command_line import parse_training_flags
from tests.conftest import ROOT
from tests.train.conftest import environment


def test_the_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def call(program: str, *words: object) -> None:
        calls.append([program, *map(str, words)])
        made = words[words.index("--save") + 1] if "--save" in words else words[1]
        Path(str(made), "checkpoints/step-0").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(long_sequences, "call", call)
    monkeypatch.setattr(long_sequences, "steps_in", lambda folder: [*folder.glob("checkpoints/step-*")])
    found = models(Arguments(tmp_path / "data", tmp_path / "out"))
    assert list(found) == [
        "trained at 256",
        "YaRN x 8 alone",
        "YaRN x 8, trained at 2048",
        "no scaling, trained at 2048",
    ]
    programs = [words[0] for words in calls]
    assert programs == ["launch.sh", "tools/export_hf.py", *["tools/convert.py", "launch.sh"] * 2]
    flags = parse_training_flags(calls[0][1:])
    assert (flags.data.seq_len, flags.optimization.global_batch_size, flags.total_steps) == (256, 8, 700)
    assert [words[-2:] for words in calls if words[0] == "tools/convert.py"] == [
        ["--rope-scaling", "yarn:8"],
        ["--rope-scaling", "none"],
    ]
    assert all(words[1:2] == ["--resume"] for words in calls[3::2])


@pytest.mark.slow
def test_the_whole_way(corpus: Path, tmp_path: Path) -> None:
    words = f"--data {corpus} --out {tmp_path}/out --results {tmp_path} --images {tmp_path} --short 16 --long 64 "
    words += "--steps 4 --more-steps 2 --tokens-a-step 64 --eval-sequences 3"
    for _ in range(2):  # the second time nothing is trained
        done = subprocess.run(
            [sys.executable, ROOT / "benchmarks/long_sequences.py", *words.split()],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "long_sequences.json").read_text())
        assert list(found["models"])[1:3] == ["YaRN x 4 alone", "YaRN x 4, trained at 64"]
        assert found["trained_tokens"] == [256, 256]
        assert all(one["seq_len"] == 64 for one in found["models"].values())
    assert "training" not in done.stdout and (tmp_path / "long_sequences.svg").exists()
    assert str(tmp_path) not in json.dumps(found["models"])
