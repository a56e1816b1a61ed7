"""A pack that is killed, at whatever moment, goes on where it was and gives what an undisturbed one gives."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from deconattn import durable
from deconattn.data import PackConfig, verify_checksums
from deconattn.data.packing.journal import Journal, open_journal
from deconattn.data.packing.pack import pack
from deconattn.errors import UserError

ROOT = Path(__file__).parents[3]
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "val": {"val_fraction": 0.4},
    "chosen": {"dedup": "exact", "min_tokens": 100, "max_tokens": 60_000},
    "shuffled": {"dedup": "exact", "shuffle": 3, "val_fraction": 0.1},
}


@pytest.fixture(scope="module")
def small_bpe(tmp_path_factory: pytest.TempPathFactory, demo_texts: list[str]) -> Path:
    """A tokenizer that threads can use."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(demo_texts[:5], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, demo_texts: list[str]) -> Path:
    """Two files with duplicates, short, empty and bad lines."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    pieces = [text[start : start + rng.randint(5, 900)] for text in demo_texts[:40] for start in (0, 900, 1800)]
    pieces += rng.choices(pieces, k=40)
    rng.shuffle(pieces)
    lines = [json.dumps({"text": piece}) for piece in pieces]
    lines[30:30] = ["{bad", '{"text": ""}']
    lines[130:130] = ['{"other": 1}', ""]
    for name, part in (("a", lines[:100]), ("b", lines[100:])):
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in part))
    return folder


def settings(inputs: Path, tokenizer: Path, out: Path, flags: str) -> dict[str, Any]:
    return {
        "inputs": [str(inputs)],
        "tokenizer": str(tokenizer),
        "out": str(out),
        "shard_tokens": 4000,
        "val_fraction": 0.05,
        **FLAGS[flags],
    }


def run_attempts(config: dict[str, Any], attempts: list[dict[str, Any]]) -> list[int | None]:
    task = json.dumps({"config": config, "attempts": attempts})
    command = [sys.executable, "-m", "tests.data.packing.killed_packs"]
    done = subprocess.run(command, input=task, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends: list[int | None] = json.loads(done.stdout)
    return ends


def whole(workers: int = 1) -> dict[str, Any]:
    return {"workers": workers, "kill": None, "when": 0}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("flags", FLAGS)
def test_killed_at_any_moment(tmp_path: Path, inputs: Path, small_bpe: Path, flags: str) -> None:
    reference = settings(inputs, small_bpe, tmp_path / "reference", flags)
    assert run_attempts(reference, [whole()]) == [0]
    verify_checksums(tmp_path / "reference")
    expected = contents(tmp_path / "reference")
    rng = random.Random(flags)
    kills = [("second", rng.uniform(0.05, 0.3)) for _ in range(3)] + [("fsync", rng.randint(1, 25)) for _ in range(3)]
    attempts = [{"workers": rng.choice((1, 2)), "kill": kill, "when": when} for kill, when in kills]
    rng.shuffle(attempts)
    config = settings(inputs, small_bpe, tmp_path / "killed", flags)
    ends = run_attempts({**config, "overwrite": True}, [*attempts, whole(2)])
    assert None in ends
    assert contents(tmp_path / "killed") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "reference"]


@pytest.mark.parametrize("flags", ["plain", "shuffled"])
def test_finished_steps_are_not_repeated(tmp_path: Path, inputs: Path, small_bpe: Path, flags: str) -> None:
    config = settings(inputs, small_bpe, tmp_path / "out", flags)
    assert run_attempts(config, [{"workers": 2, "kill": "entry", "when": 2}]) == [None]
    partial = tmp_path / ".out.partial"
    names = "result/train-*.arrow" if flags == "plain" else "work/run-*.tokens"
    finished = {path.name: path.stat() for path in sorted(partial.glob(names))[:2]}
    assert len(finished) == 2
    links = {name: tmp_path / f"link-{name}" for name in finished}  # the inodes, whatever becomes of the names
    for name, link in links.items():
        os.link(next(partial.glob(f"*/{name}")), link)
    summary = pack(PackConfig(**{**config, "inputs": tuple(config["inputs"]), "out": tmp_path / "out"}))
    assert "went on after 2 steps of an interrupted pack" in str(summary)
    assert not partial.exists()
    for name, link in links.items():
        assert link.stat().st_mtime_ns == finished[name].st_mtime_ns
        if flags == "plain":
            assert link.samefile(tmp_path / "out" / name)


@pytest.fixture
def unfinished(tmp_path: Path, demo_texts: list[str], sp_model: Path, monkeypatch: pytest.MonkeyPatch) -> PackConfig:
    """A pack that a full disk stopped after two shards."""
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in demo_texts[:12]))
    config = PackConfig((str(path),), str(sp_model), tmp_path / "out", workers=1, shard_tokens=4000)
    append = Journal.append

    def full(journal: Journal, entry: dict[str, Any]) -> None:
        append(journal, entry)
        if len(journal.entries) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(UserError, match="out: no space left on the disk"):
            pack(config)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".out.partial", "in"]
    return config


def test_a_failure_keeps_what_was_packed(unfinished: PackConfig) -> None:
    assert pack(dataclasses.replace(unfinished, max_bad=7)).continued == 2
    verify_checksums(unfinished.out)


def test_another_command_does_not_go_on(unfinished: PackConfig, hf_tokenizer: Path, tmp_path: Path) -> None:
    other = tmp_path / "in" / "b.jsonl"
    other.write_text('{"text": "b"}\n')
    first = unfinished.inputs[0]
    for changes, message in (
        ({"val_fraction": 0.5}, "--val-fraction was 0.01 and is 0.5"),
        ({"dedup": "exact"}, "--dedup was not given and is exact"),
        ({"tokenizer": str(hf_tokenizer)}, "--tokenizer was the tokenizer"),
        ({"eos": "<s>"}, "--eos was </s> and is <s>"),
        ({"bos": "<s>"}, "--bos was not given and is <s>"),
        ({"inputs": (first, str(other))}, "b.jsonl was not among the inputs"),
        ({"inputs": (str(other),)}, "b.jsonl was not among the inputs"),
    ):
        with pytest.raises(UserError, match=f"out.partial holds an unfinished pack, but .*{message}.*--restart"):
            pack(dataclasses.replace(unfinished, **changes))
    Path(first).write_text('{"text": "changed"}\n')
    with pytest.raises(UserError, match="a.jsonl has changed since; undo that, or give --restart to discard it"):
        pack(unfinished)
    summary = pack(dataclasses.replace(unfinished, restart=True))
    assert (summary.documents, summary.continued) == (2, 0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("name", ["plan.json", "journal.jsonl", "result/train-00001.arrow", "work/hashes"])
def test_a_damaged_journal(unfinished: PackConfig, name: str, tmp_path: Path) -> None:
    if name == "work/hashes":
        plan = tmp_path / ".out.partial" / "plan.json"
        plan.write_text(plan.read_text().replace('"--dedup": null', '"--dedup": "exact"'))
        entry = tmp_path / ".out.partial" / "journal.jsonl"
        entry.write_text(entry.read_text().replace('"documents": 0', '"documents": 5'))
        unfinished = dataclasses.replace(unfinished, dedup="exact")
    else:
        (tmp_path / ".out.partial" / name).write_text("{\n{\n")
    with pytest.raises(UserError, match=f"{name}: the unfinished pack is damaged; give --restart"):
        pack(unfinished)
    pack(dataclasses.replace(unfinished, restart=True))


def test_standard_input_begins_anew(tmp_path: Path, sp_model: Path, demo_texts: list[str]) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in demo_texts[:12])
    command = [sys.executable, "tools/pack.py", "-", "--tokenizer", str(sp_model), "--out", str(tmp_path / "out")]
    command += ["--workers", "1", "--shard-tokens", "4000", "--max-bad", "0"]
    broken = subprocess.run(command, input=lines + "{bad\n", cwd=ROOT, capture_output=True, text=True)
    assert broken.returncode == 2 and broken.stderr.startswith("error: -:13: not JSON")
    assert not list(tmp_path.iterdir())
    whole = subprocess.run(command, input=lines, cwd=ROOT, capture_output=True, text=True)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "12 documents" in whole.stdout


def test_standard_input_discards_unfinished_work(unfinished: PackConfig) -> None:
    command = [sys.executable, "tools/pack.py", "-", "--tokenizer", unfinished.tokenizer, "--out", str(unfinished.out)]
    done = subprocess.run(command, input='{"text": "a b c"}\n', cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "note: standard input cannot be read again; the pack begins anew\n"
    assert done.returncode == 0 and "2 documents" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_is_one_line(tmp_path: Path, sp_model: Path, demo_texts: list[str], number: int) -> None:
    command = [sys.executable, "tools/pack.py", "-", "--tokenizer", str(sp_model), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".out.partial" / "lock").exists():  # it waits for its input then
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == "interrupted; the same command goes on from the last shard that was finished\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "unfinished"])
def test_an_interrupt_at_any_line_before_the_work(tmp_path: Path, earlier: bool) -> None:
    folder = tmp_path / ".out.partial"
    if earlier:
        folder.mkdir()
        (folder / "plan.json").write_text("{}")
        (folder / "journal.jsonl").write_text("{}\n")
    stopped = [_interrupted_at(line, tmp_path / "out") for line in range(60)]
    lines = stopped.index("at work")
    assert lines > 8 and set(stopped[:lines]) == {"before"} and set(stopped[lines:]) == {"at work"}
    assert folder.exists() == earlier
    if earlier:
        assert (folder / "journal.jsonl").read_text() == "{}\n"
        with open_journal(tmp_path / "out", keep=True):  # no lock was left behind
            pass


def _interrupted_at(line: int, out: Path) -> str:
    """Interrupt :func:`open_journal` at the `line`-th line that is run in its file, or in its block."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith("packing/journal.py"):
            return None
        seen += event == "line"
        if event == "line" and seen > line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    where = "before"
    try:
        with open_journal(out, keep=True):
            where = "at work"
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return where
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("there", [False, True], ids=["new", "another"])
@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
def test_a_kill_as_the_result_moves(
    unfinished: PackConfig, monkeypatch: pytest.MonkeyPatch, moved: bool, there: bool
) -> None:
    """What is left of a pack whose result is in place is no unfinished pack; one that has not moved is."""
    if there:
        pack(dataclasses.replace(unfinished, shard_tokens=20_000, restart=True))
        expected = {path.name for path in unfinished.out.iterdir()}
    put = durable.put_in_place

    def dying(staging: Path, out: Path) -> None:
        if moved and there:
            durable.exchange(staging, out)
        elif moved:
            put(staging, out)
        raise KeyboardInterrupt

    config = dataclasses.replace(unfinished, overwrite=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(durable, "put_in_place", dying)
        pack(config)
    if there and not moved:
        assert {path.name for path in unfinished.out.iterdir()} == expected
    assert (pack(config).continued > 0) != moved
    verify_checksums(unfinished.out)


def test_a_kill_as_the_rest_is_removed(unfinished: PackConfig) -> None:
    shutil.rmtree(unfinished.out.with_name(".out.partial") / "result")
    assert pack(unfinished).continued == 0
    verify_checksums(unfinished.out)
