"""A pack that fails, is refused, or is killed leaves nothing that looks finished."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deconattn import durable
from deconattn.data import PackConfig, TokenCorpus, load_tokenizer
from deconattn.data.packing.encode import Work, encode_blocks
from deconattn.data.packing.pack import pack
from deconattn.data.reading.blocks import InputBlock
from deconattn.data.tokenizing.tokenizer import SentencePieceTokenizer
from deconattn.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path, demo_texts: list[str], sp_model: Path) -> PackConfig:
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in demo_texts[:20]))
    return PackConfig(inputs=(str(path),), tokenizer=str(sp_model), out=tmp_path / "out", workers=1)


def beside(config: PackConfig) -> list[str]:
    return sorted(entry.name for entry in config.out.parent.iterdir() if entry.name != "in")


def test_a_folder_with_other_things_is_never_touched(config: PackConfig) -> None:
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and not a packed corpus"):
            pack(PackConfig(config.inputs, config.tokenizer, config.out, 1, overwrite=overwrite))
    assert (config.out / "thesis.tex").read_text() == "x"
    assert beside(config) == ["out"]


def test_overwrite_replaces_a_packed_corpus_only(config: PackConfig, demo_texts: list[str]) -> None:
    config.out.mkdir()  # an empty folder is as good as none
    pack(config)
    before = TokenCorpus(config.out).num_tokens
    with pytest.raises(UserError, match="already holds a packed corpus.*--overwrite"):
        pack(config)
    Path(config.inputs[0]).write_text(json.dumps({"text": demo_texts[0]}) + "\n")
    again = PackConfig(config.inputs, config.tokenizer, config.out, 1, overwrite=True)
    (config.out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt, which no pack wrote"):
        pack(again)
    (config.out / "notes.txt").unlink()
    pack(again)
    assert TokenCorpus(config.out).num_tokens < before
    assert beside(config) == ["out"]


def test_out_may_be_a_link(config: PackConfig) -> None:
    target = config.out.parent / "in" / "elsewhere"
    target.mkdir()
    config.out.symlink_to(target)
    pack(config)
    assert config.out.is_symlink()
    assert TokenCorpus(target).num_tokens == TokenCorpus(config.out).num_tokens


def test_out_is_a_mount_point(config: PackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == config.out)
    with pytest.raises(UserError, match="is a mount point; give --out a folder below it"):
        pack(config)


def test_out_is_a_file(config: PackConfig) -> None:
    config.out.write_text("x")
    with pytest.raises(UserError, match="exists and is not a folder"):
        pack(config)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target", ["deconattn.data.shards._HashingFile.write", "os.fsync", "pathlib.Path.write_bytes"])
def test_full_disk(config: PackConfig, monkeypatch: pytest.MonkeyPatch, target: str, overwrite: bool) -> None:
    if overwrite:
        pack(config)
        before = {path.name: path.read_bytes() for path in config.out.iterdir()}

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target, full)
    with pytest.raises(UserError, match=f"{config.out}: no space left on the disk"):
        pack(PackConfig(config.inputs, config.tokenizer, config.out, 1, overwrite=overwrite))
    assert beside(config) == (["out"] if overwrite else [])
    if overwrite:
        assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before


def test_no_permission(config: PackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(config.out.parent))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(UserError, match=f"{config.out.parent}: no permission"):
        pack(config)


def test_a_failed_exchange_puts_the_old_corpus_back(config: PackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(config)

    def fail(one: Path, other: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "exchange", fail)
    with pytest.raises(UserError, match="Input/output error"):
        pack(PackConfig(config.inputs, config.tokenizer, config.out, 1, overwrite=True))
    monkeypatch.undo()
    assert TokenCorpus(config.out).num_tokens
    assert beside(config) == ["out"]


def test_a_dead_worker_is_reported(sp_model: Path) -> None:
    def blocks() -> Iterator[InputBlock]:
        for number in range(20):
            yield InputBlock(0, number, "text", b"word " * 100_000, 0)
            for worker in multiprocessing.active_children():
                with suppress(ProcessLookupError):  # it is dead already, and not yet known to be
                    os.kill(worker.pid or 0, signal.SIGKILL)

    work = Work(load_tokenizer(sp_model), "text", "uint16", hashes=False)
    with pytest.raises(UserError, match="worker died.*--workers"):
        list(encode_blocks(blocks(), work, workers=2, threads=False))


def test_ids_beyond_the_vocabulary(config: PackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SentencePieceTokenizer, "encode_batch", lambda self, texts: [np.array([70_000])] * len(texts))
    with pytest.raises(UserError, match="gives the id 70000, its vocabulary has 512 entries"):
        pack(config)
    assert beside(config) == []


def test_workers_end_with_a_killed_pack(config: PackConfig) -> None:
    script = f"""
import multiprocessing, time
from pathlib import Path
import deconattn.data.packing.pack as module
from deconattn.data.packing.assemble import Assembler

def stop(self):  # everything tokenized and written but the end of the last shards
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    Assembler.add = lambda self, *_: stop(self)
    module.pack(module.PackConfig(({config.inputs[0]!r},), {config.tokenizer!r}, Path({str(config.out)!r}),
                                  workers=2))
"""
    path = config.out.parent / "in" / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, path], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        with pytest.raises(UserError, match=".out.partial: another pack is at work on this output"):
            pack(config)
        process.kill()
    assert len(workers) in (1, 2)
    assert beside(config) == [".out.partial"]
    for folder in (config.out, config.out.parent / ".out.partial"):
        with pytest.raises(UserError, match="tools/pack.py"):
            TokenCorpus(folder)
    deadline = time.monotonic() + 10
    while any(_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "the workers outlive a killed pack"
        time.sleep(0.05)
    pack(config)
    assert beside(config) == ["out"]


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_command_line(config: PackConfig) -> None:
    command = [sys.executable, str(ROOT / "tools" / "pack.py"), *config.inputs, "--tokenizer", config.tokenizer]
    command += ["--out", str(config.out), "--workers", "2", "--val-fraction", "0.2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (first.returncode, first.stderr) == (0, "")
    assert f"packed {config.out}: 20 documents" in first.stdout and "bytes per token" in first.stdout
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: {config.out} already holds") and second.stderr.count("\n") == 1
    third = subprocess.run([*command, "--workers", "0"], env=environment, capture_output=True, text=True)
    assert (third.returncode, third.stderr) == (2, "error: --workers 0: must be at least 1\n")
