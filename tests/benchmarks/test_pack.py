"""`packing/pack.py`: that it measures and compares what it says, not how fast anything is."""

import gzip
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from benchmarks.packing import contestants as pack_contestants
from benchmarks.packing import pack
from benchmarks.packing import worker as pack_worker
from benchmarks.packing.contestants import DATASETS, GIGATOKEN, MEGATRON, OURS, TOKENIZERS, WARM, Contestant, Task
from benchmarks.packing.corpus import DEMO, Corpus, make_corpus, read_lines
from benchmarks.packing.process import MeasuredProcess, measured
from benchmarks.packing.report import cells, notes, summarize
from benchmarks.packing.streams import (
    MEGATRON_MAGIC,
    TokenStream,
    first_difference,
    of_arrays,
    of_dataset,
    of_megatron,
    of_shards,
)
from deconattn.errors import UserError

PYTHON = [sys.executable, "-S", "-c"]  # starts at once


def stream(*documents: Sequence[int]) -> TokenStream:
    tokens = np.array([one for document in documents for one in document], dtype=np.uint16)
    return TokenStream(tokens, np.array([len(document) for document in documents], dtype=np.int64))


def as_lists(found: TokenStream) -> list[list[int]]:
    return [part.tolist() for part in np.split(found.tokens, found.lengths.cumsum()[:-1])]


def test_where_streams_differ_first():
    ours = stream([5, 6, 0], [7, 0], [8, 9, 0])
    assert first_difference(ours, stream([5, 6, 0], [7, 0], [8, 9, 0])) is None
    wider = TokenStream(ours.tokens.astype(np.int32), ours.lengths)
    assert first_difference(ours, wider) is None
    assert first_difference(ours, stream([5, 6, 0], [7, 0], [8, 4, 0])) == "document 2, token 1: 9 and 4"
    assert first_difference(ours, stream([5, 6, 0], [7, 7, 0], [9, 0])) == "document 1: 2 and 3 tokens"
    assert first_difference(ours, stream([5, 2, 0], [7, 7, 0])) == "document 0, token 1: 6 and 2"
    assert first_difference(ours, stream([5, 6, 0], [7, 0])) == "3 and 2 documents"
    longer = TokenStream(np.append(ours.tokens, 1), ours.lengths)
    assert first_difference(ours, longer) == "8 and 9 tokens"


def list_array(documents: Sequence[Sequence[int]], kind: pa.DataType) -> pa.Array:
    return pa.array(documents, pa.list_(kind))


def write_arrow(path: Path, column: str, parts: Sequence[pa.Array], streaming: bool) -> None:
    schema = pa.schema([(column, parts[0].type)])
    make = pa.ipc.new_stream if streaming else pa.ipc.new_file
    with make(str(path), schema) as writer:
        for part in parts:
            writer.write_batch(pa.record_batch([part], schema=schema))


def test_streams_of_shards(tmp_path: Path):
    """Record batches and shards in the manifest's order, the validation split left out."""
    kind = pa.uint16()
    write_arrow(
        tmp_path / "b.arrow", "tokens", [list_array([[1, 0], [2, 3, 0]], kind), list_array([[4, 0]], kind)], False
    )
    write_arrow(tmp_path / "a.arrow", "tokens", [list_array([[5, 0]], kind).slice(0, 1)], False)
    write_arrow(tmp_path / "v.arrow", "tokens", [list_array([[6, 0]], kind)], False)
    shards = [{"name": f"{name}.arrow", "split": "val" if name == "v" else "train"} for name in "bva"]
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": shards}))
    assert as_lists(of_shards(tmp_path)) == [[1, 0], [2, 3, 0], [4, 0], [5, 0]]


def test_stream_of_a_dataset(tmp_path: Path):
    for name, documents in (("x", [[1, 0]]), ("y", [[2, 2, 0], [3, 0]])):
        write_arrow(tmp_path / f"{name}.arrow", "input_ids", [list_array(documents, pa.int32())], True)
    files = [{"filename": f"{name}.arrow"} for name in "yx"]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    assert as_lists(of_dataset(tmp_path)) == [[2, 2, 0], [3, 0], [1, 0]]


@pytest.mark.parametrize(("code", "kind"), [(8, "<u2"), (4, "<i4")])
def test_stream_of_megatron(tmp_path: Path, code: int, kind: str):
    lengths = np.array([2, 3], dtype="<i4")
    head = MEGATRON_MAGIC + (1).to_bytes(8, "little") + bytes([code])
    head += (2).to_bytes(8, "little") + (3).to_bytes(8, "little")
    rest = lengths.tobytes() + np.array([0, 4], "<i8").tobytes() + np.array([0, 1, 2], "<i8").tobytes()
    (tmp_path / "m.idx").write_bytes(head + rest)
    (tmp_path / "m.bin").write_bytes(np.array([7, 0, 8, 9, 0], dtype=kind).tobytes())
    assert as_lists(of_megatron(tmp_path / "m")) == [[7, 0], [8, 9, 0]]
    (tmp_path / "m.idx").write_bytes(b"something else entirely")
    with pytest.raises(ValueError, match="not an index"):
        of_megatron(tmp_path / "m")


def sample(seconds: float, cpu: float = 1.0) -> dict[str, float]:
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_gib": seconds, "largest_gib": 0.5}


def test_ratios_are_taken_within_rounds():
    samples = {
        OURS: [sample(1), sample(4), sample(1)],
        MEGATRON: [sample(3, 2), sample(12, 2), sample(1, 2)],
        TOKENIZERS: [sample(0.5), sample(2), sample(2)],
    }
    found = summarize(
        samples, tokens=1000, text_bytes=8_000_000, startup={OURS: [sample(0.5, 0.5), sample(2, 0.5), sample(0.6, 1)]}
    )
    assert found[MEGATRON]["ratio"] == 3 and found[MEGATRON]["cpu_ratio"] == 2
    assert found[OURS]["ratio"] == 1 and found[OURS]["of_tokenizers"] == 0.5
    assert found[MEGATRON]["of_tokenizers_cpu"] == 0.5 and found[MEGATRON]["of_tokenizers_running"] is None
    assert found[OURS]["startup_seconds"] == 0.6 and found[OURS]["of_tokenizers_running"] == 1
    assert found[OURS]["of_tokenizers_running_cpu"] is None  # a round took no longer than to start
    assert found[OURS]["of_gigatoken"] is None and found[MEGATRON]["startup_seconds"] is None
    assert (found[OURS]["tokens_per_second"], found[OURS]["mb_per_second"]) == (1000, 8)
    assert found[OURS]["peak_gib"] == 4
    assert summarize({MEGATRON: [sample(1)]}, 1, 1, {})[MEGATRON]["ratio"] is None
    assert cells(MEGATRON, found[MEGATRON])[:3] == [MEGATRON, "3.00", ""]
    assert len(cells(OURS, found[OURS])) == len(pack.COLUMNS)


def test_notes_tell_who_was_absent_failed_and_differs():
    result = {
        "absent": {MEGATRON: "no such thing"},
        "failures": {DATASETS: "exit code 1; its output ends in:\nTraceback\nValueError: no luck\n"},
        "reference": TOKENIZERS,
        "differences": {OURS: None, GIGATOKEN: "document 1, token 2: 3 and 4"},
    }
    said = "\n".join(notes(result))
    assert f"{MEGATRON}: absent, no such thing" in said
    assert f"{DATASETS}: failed, exit code 1; its output ends in: ValueError: no luck" in said
    assert f"identical to those of {TOKENIZERS}, document by document: {OURS}\n" in said
    assert f"{GIGATOKEN} differs from {TOKENIZERS} in document 1, token 2: 3 and 4" in said


def test_the_exact_library_is_the_reference():
    one, other = stream([1, 0]), stream([2, 0])
    differs = "document 0, token 0: 1 and 2"
    assert pack.compare({OURS: other, TOKENIZERS: one}) == (TOKENIZERS, {OURS: differs})
    assert pack.compare({MEGATRON: other, OURS: one}) == (OURS, {MEGATRON: differs})
    assert pack.compare({}) == (None, {})


def test_the_corpus_is_the_same_plain_and_compressed(tmp_path: Path):
    source = tmp_path / "in.jsonl.gz"
    lines = [json.dumps({"text": text, "id": 1}, ensure_ascii=False).encode() + b"\n" for text in ("née", "b" * 9, "c")]
    source.write_bytes(gzip.compress(b"".join(lines)[:-1]))  # the last line has no end
    found = make_corpus([source], tmp_path)
    assert (found.documents, found.text_bytes) == (3, 4 + 9 + 1)
    assert found.plain.read_bytes() == b"".join(lines)
    assert [line for line, _ in read_lines([found.compressed, found.plain])] == lines * 2
    assert make_corpus([found.plain], tmp_path / "..", 5e-6).documents == 2
    assert make_corpus([found.compressed], tmp_path / "..", 1e-9).documents == 1


@pytest.mark.parametrize("bad", [b"{", b'{"t": 1}', b'{"text": 1}', b"[]", b'{"text": "\xff"}'])
def test_a_corpus_that_cannot_be_read(tmp_path: Path, bad: bytes):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "good"}\n' + bad + b"\n")
    with pytest.raises(UserError, match=f"{source}, line 2: .*give JSON lines") as refused:
        make_corpus([source], tmp_path)
    assert "\n" not in str(refused.value)


def test_no_documents(tmp_path: Path):
    (tmp_path / "in.jsonl").touch()
    with pytest.raises(UserError, match="no documents"):
        make_corpus([tmp_path / "in.jsonl"], tmp_path)


def test_memory_and_time_of_the_whole_tree(tmp_path: Path):
    """A process and its child hold 64 MiB each until told to end."""
    child = f"held = b'x' * 2**26; open({str(tmp_path / 'ready')!r}, 'w'); input()"
    parent = f"""
import os, subprocess, sys, time
held = b"x" * 2**26
child = subprocess.Popen([sys.executable, "-S", "-c", {child!r}], stdin=subprocess.PIPE)
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
child.communicate(b"end")
"""
    with MeasuredProcess([*PYTHON, parent]) as process:
        while not (tmp_path / "ready").exists():
            assert not process.wait(0.05), process.output()
        assert not process.wait(0.05)  # takes a sample
        (tmp_path / "go").touch()
        assert process.wait(60) and process.returncode == 0, process.output()
        assert 2**27 < process.usage.peak_gib * 2**30 < 2**27 + 2**26
        assert 2**26 < process.usage.largest_gib * 2**30 < 2**27
        assert process.usage.seconds > 0 and process.usage.cpu_seconds > 0


def test_a_command_that_fails_says_why():
    with pytest.raises(RuntimeError, match="exit code 3.*\n.*no luck"):
        measured([*PYTHON, "print('no luck'); raise SystemExit(3)"], {}, limit=60)


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path):
    child = f"import time; open({str(tmp_path / 'ready')!r}, 'w'); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    with MeasuredProcess([*PYTHON, parent]) as process:
        while not (tmp_path / "ready").exists():
            assert not process.wait(0.05), process.output()
        (hanging,) = psutil.Process(process.pid).children()
    assert process.returncode == -9
    psutil.wait_procs([hanging], timeout=60)
    assert not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE


def test_variables_reach_the_command():
    measured([*PYTHON, "import os; assert os.environ['GIVEN'] == 'here'"], {"GIVEN": "here"}, limit=60)
    with pytest.raises(RuntimeError, match="stopped after"):
        measured([*PYTHON, "import time; time.sleep(600)"], {}, limit=0.1)


def test_a_timed_pass_adds_the_separator():
    class Encoding:
        ids = (3, 4)

    taken, ids = pack_worker.timed_pass(iter([[Encoding(), Encoding()], [np.array([5])]]), 9)
    assert [one.tolist() for one in ids] == [[3, 4, 9], [3, 4, 9], [5, 9]]
    assert set(taken) == {"seconds", "cpu_seconds"}


def test_who_cannot_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = Task(Corpus(tmp_path, tmp_path, 1, 1), tmp_path, 0, "", 1, 1.0)
    assert pack_contestants.absence(OURS, task) is None
    assert "--megatron" in (pack_contestants.absence(MEGATRON, task) or "")
    here = replace(task, megatron=tmp_path)
    assert "has no tools/preprocess_data.py" in (pack_contestants.absence(MEGATRON, here) or "")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "preprocess_data.py").touch()
    assert pack_contestants.absence(MEGATRON, here) is None
    monkeypatch.setattr(pack_contestants, "find_spec", lambda name: None)
    assert pack_contestants.absence(GIGATOKEN, task) == "gigatoken is not installed"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"contestants": ("nosuch",)}, "--contestants 'nosuch': choose from"),
        ({"tokenizer": None}, "--tokenizer None: give a tokenizer.json"),
        ({"tokenizer": Path("x.model")}, "--tokenizer x.model"),
        ({"cores": 10_000}, "--cores 10000: there are"),
        ({"rounds": 0}, "--rounds 0: must be above 0"),
        ({"limit_s": 0.0}, "--limit-s 0.0"),
        ({"limit_mb": -1.0}, "--limit-mb -1.0: must be at least 0"),
    ],
)
def test_bad_input(flags: dict[str, Any], expected: str):
    with pytest.raises(UserError, match=expected) as refused:
        pack.Arguments(**({"tokenizer": Path("tokenizer.json")} | flags))
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE of the demo corpus."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    made.train_from_iterator([DEMO.read_text(encoding="utf-8")[:20000]], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Path) -> Run:
    """pack.py with these flags on a little of the demo corpus: its exit code, its result and its Markdown."""

    def with_flags(*flags: str) -> tuple[int, dict[str, Any], str]:
        given = [
            "--corpus",
            str(DEMO),
            "--tokenizer",
            str(tokenizer),
            "--limit-mb",
            "0.05",
            "--out",
            str(tmp_path / "r"),
        ]
        monkeypatch.setattr("sys.argv", ["pack.py", *given, "--scratch", str(tmp_path), *flags])
        code = pack.main()
        report, result = sorted((tmp_path / "r").iterdir(), reverse=True)
        assert [path.name for path in tmp_path.iterdir()] == ["r"]  # the scratch folder is gone
        return code, json.loads(result.read_text()), report.read_text()

    return with_flags


def copying(name: str, source: Path) -> Contestant:
    """A contestant that copies a stream made beforehand."""
    return Contestant(name, lambda task, out: ["cp", "-r", f"{source}/.", str(out)], of_arrays)


def saved(folder: Path, made: TokenStream, **times: float) -> Path:
    folder.mkdir()
    np.save(folder / "tokens.npy", made.tokens)
    np.save(folder / "lengths.npy", made.lengths)
    rows = {name: {"seconds": seconds, "cpu_seconds": seconds} for name, seconds in times.items()}
    (folder / "times.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


def test_rounds(run: Run, monkeypatch: pytest.MonkeyPatch, prepared: Path):
    """All take turns, a bare tokenizer's times are its own, and equal tokens are found equal."""
    same = stream([5, 6, 0], [7, 0])
    players = [
        copying(OURS, saved(prepared / "a", same)),
        copying(TOKENIZERS, saved(prepared / "b", same, first=0.5)),
        copying(GIGATOKEN, saved(prepared / "c", same, first=0.25, warm=0.125)),
    ]
    monkeypatch.setattr(pack, "contestants", lambda: {one.name: one for one in players})
    code, result, report = run("--rounds", "2", "--contestants", OURS, GIGATOKEN, TOKENIZERS, MEGATRON)
    assert code == 0
    assert {name: len(rows) for name, rows in result["samples"].items()} == {
        OURS: 2,
        TOKENIZERS: 2,
        GIGATOKEN: 2,
        WARM: 2,
    }
    summary = result["summary"]
    assert (summary[TOKENIZERS]["seconds"], summary[GIGATOKEN]["seconds"], summary[WARM]["seconds"]) == (
        0.5,
        0.25,
        0.125,
    )
    assert summary[TOKENIZERS]["of_gigatoken"] == 0.5 and summary[WARM]["of_gigatoken"] == 2
    assert result["corpus"]["tokens"] == 5 and summary[TOKENIZERS]["tokens_per_second"] == 10
    assert (result["reference"], result["differences"]) == (TOKENIZERS, {OURS: None, GIGATOKEN: None})
    assert summary[OURS]["startup_seconds"] > 0 and summary[TOKENIZERS]["startup_seconds"] is None
    assert list(result["absent"]) == [MEGATRON] and result["failures"] == {}
    assert f"| {WARM} |" in report and f"{MEGATRON}: absent" in report


def test_a_failure_and_a_difference(run: Run, monkeypatch: pytest.MonkeyPatch, prepared: Path, capfd: Any):
    """Are reported, and the others go on."""
    players = [
        copying(OURS, prepared / "nothing here"),
        copying(TOKENIZERS, saved(prepared / "b", stream([1, 0]), first=0.5)),
        copying(DATASETS, saved(prepared / "c", stream([2, 0]))),
    ]
    monkeypatch.setattr(pack, "contestants", lambda: {one.name: one for one in players})
    code, result, report = run("--rounds", "1", "--contestants", OURS, DATASETS, TOKENIZERS)
    assert code == 1
    assert list(result["summary"]) == [TOKENIZERS, DATASETS]
    assert "nothing here" in result["failures"][OURS]
    assert result["differences"] == {DATASETS: "document 0, token 0: 1 and 2"}
    assert f"{DATASETS} differs from {TOKENIZERS} in document 0" in report and f"{OURS}: failed" in report
    assert f"{OURS} failed" in capfd.readouterr().err


@pytest.mark.slow
def test_end_to_end(run: Run):
    """Ours, from plain and from compressed lines, and the bare tokenizers: the same tokens."""
    names = [OURS, pack_contestants.OURS_ZSTD, TOKENIZERS, GIGATOKEN, DATASETS]
    code, result, _ = run("--rounds", "1", "--contestants", *names)
    assert code == 0, result["failures"]
    present = [name for name in names if name not in result["absent"]]
    assert {OURS, TOKENIZERS} < set(present)
    assert set(result["differences"]) == set(present) - {TOKENIZERS}
    assert not any(result["differences"].values())
    assert all(row["peak_gib"] > 0 for name, row in result["summary"].items())
