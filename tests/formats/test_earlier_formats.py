"""Files that earlier versions wrote are read: here each lies as the version of its format wrote it.

`corpus-1` is packed in shards of format 1. `checkpoint-N` is a run of two tiny layers on it, with the checkpoint of
step 3 in format N; `expected.json` has the losses of steps 4 and 5 as that version went on, and logits of `export-1`
as it was exported. With a new format a folder is added, made by the code that first writes it:

    python tools/pack.py TEXT --tokenizer train:320 --out corpus-N --val-fraction 0.3
    python launch.sh FLAGS --data corpus-1 --save checkpoint-N
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deconattn.checkpoint.manifest import FORMAT_VERSION, MANIFEST
from deconattn.data import verify_checksums
from deconattn.data.manifest import FORMAT_VERSION as SHARDS

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
FLAGS = (
    "--size tiny --variant nonapproximate --pattern even --hidden-size 8 --intermediate-size 16 --num-hidden-layers 2 "
    "--num-attention-heads 2 --head-dim 4 --seq-len 16 --global-batch-size 2 --micro-batch-size 2 --steps 5 "
    "--save-every 3 --data corpus-1"
).split()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of what the earlier versions wrote."""
    return Path(shutil.copytree(HERE, tmp_path / "files"))


def test_every_format_is_here() -> None:
    versions = range(1, FORMAT_VERSION + 1)
    written = [json.loads(path.read_text("utf-8")) for path in HERE.glob(f"checkpoint-*/checkpoints/*/{MANIFEST}")]
    assert sorted(manifest["format_version"] for manifest in written) == list(versions)
    assert len(list(HERE.glob("corpus-*"))) == SHARDS


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_a_checkpoint_goes_on(files: Path, version: int) -> None:
    name = f"checkpoint-{version}"
    command = [sys.executable, str(ROOT / "launch.sh"), *FLAGS, "--save", name, "--resume"]
    done = subprocess.run(command, cwd=files, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (files / name / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 5
    assert losses[3:] == pytest.approx(EXPECTED[name], rel=1e-6)


def test_a_corpus_is_read(files: Path) -> None:
    verify_checksums(files / "corpus-1")


def test_an_export_is_loaded(files: Path) -> None:
    ids = torch.arange(16)[None] * 7 % 320
    model = AutoModelForCausalLM.from_pretrained(files / "export-1", trust_remote_code=True, dtype=torch.float32)
    expected = torch.tensor(EXPECTED["export-1"])
    torch.testing.assert_close(model(ids).logits[0, -1, : len(expected)], expected, rtol=1e-5, atol=1e-6)
    command = [
        sys.executable,
        str(ROOT / "tools" / "generate.py"),
        "export-1",
        "--prompt",
        "to be",
        "--max-new-tokens",
        "4",
    ]
    done = subprocess.run(command, cwd=files, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("to be")
