"""Who packs in `pack.py`: the command of each, what it must be given, and where its tokens lie afterwards."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.packing.corpus import Corpus
from benchmarks.packing.process import Usage, measured
from benchmarks.packing.streams import TokenStream, of_arrays, of_dataset, of_megatron, of_shards
from benchmarks.training.process import environment

OURS = "tools/pack.py"
OURS_ZSTD = "tools/pack.py (.zst)"
MEGATRON = "Megatron preprocess_data"
MEGATRON_FAST = "Megatron preprocess_data_fast"
DATASETS = "datasets.map"
GIGATOKEN = "bare gigatoken"
TOKENIZERS = "bare tokenizers"
WARM = "bare gigatoken (warm)"
"""No contestant: the second pass of `GIGATOKEN` over the same texts."""
NAMES = (OURS, OURS_ZSTD, MEGATRON_FAST, MEGATRON, DATASETS, GIGATOKEN, TOKENIZERS)
BARE = (GIGATOKEN, TOKENIZERS)
Sample = dict[str, float]
"""`seconds` and `cpu_seconds`; of a whole process `peak_gib` and `largest_gib` too."""


@dataclass(frozen=True)
class Task:
    """What all are given: the same documents, tokenizer and number of workers."""

    corpus: Corpus
    tokenizer: Path
    separator: int
    separator_piece: str
    workers: int
    limit: float
    """Seconds after which a run is stopped."""
    megatron: Path | None = None
    megatron_python: str = sys.executable


@dataclass(frozen=True)
class Contestant:
    """A command that packs `task.corpus` into a folder, and a reader of what it left there."""

    name: str
    command: Callable[[Task, Path], list[str]]
    read: Callable[[Path], TokenStream]
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(self, task: Task, out: Path) -> dict[str, Sample]:
        """Pack; by name of the measurement what it took: the contestant's own, and `WARM`.

        Raises:
            RuntimeError: it failed.
        """
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        os.sync()  # what the one before has written is not written on this one's time
        # Rayon, which both tokenizer libraries use, and OpenMP get as many threads as there are workers.
        threads = {name: str(task.workers) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
        offline = {"HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1"}
        command = self.command(task, out)
        usage = measured(command, environment(compiles=False) | threads | offline | dict(self.variables), task.limit)
        if self.name not in BARE:
            return {self.name: vars(usage)}
        return _bare_samples(self.name, usage, out)


def absence(name: str, task: Task) -> str | None:
    """Why a contestant cannot take part here, in a line; None if it can."""
    if name in (MEGATRON, MEGATRON_FAST):
        if task.megatron is None:
            return "no Megatron-LM; give --megatron or set MEGATRON_LM (benchmarks/packing/pack.py says how)"
        if not (task.megatron / "tools" / _script(name)).is_file():
            return f"{task.megatron} has no tools/{_script(name)}"
        return None
    library = {DATASETS: "datasets", GIGATOKEN: "gigatoken"}.get(name)
    if library and find_spec(library) is None:
        return f"{library} is not installed"
    return None


def contestants() -> dict[str, Contestant]:
    """All of them, by name."""
    prefix = "megatron_text_document"
    found = [
        Contestant(OURS, partial(_ours, compressed=False), lambda out: of_shards(out / "packed")),
        Contestant(OURS_ZSTD, partial(_ours, compressed=True), lambda out: of_shards(out / "packed")),
        Contestant(MEGATRON_FAST, partial(_megatron, name=MEGATRON_FAST), lambda out: of_megatron(out / prefix)),
        Contestant(MEGATRON, partial(_megatron, name=MEGATRON), lambda out: of_megatron(out / prefix)),
        Contestant(
            DATASETS,
            partial(_worker, kind="datasets"),
            lambda out: of_dataset(out / "dataset"),
            {"TOKENIZERS_PARALLELISM": "false"},  # there is a process for every core already
        ),
        Contestant(GIGATOKEN, partial(_worker, kind="gigatoken"), of_arrays),
        Contestant(TOKENIZERS, partial(_worker, kind="tokenizers"), of_arrays, {"TOKENIZERS_PARALLELISM": "true"}),
    ]
    return {one.name: one for one in found}


def _ours(task: Task, out: Path, compressed: bool) -> list[str]:
    source = task.corpus.compressed if compressed else task.corpus.plain
    command = [sys.executable, str(ROOT / "tools" / "pack.py"), str(source), "--tokenizer", str(task.tokenizer)]
    return [*command, "--out", str(out / "packed"), "--workers", str(task.workers), "--val-fraction", "0"]


def _megatron(task: Task, out: Path, name: str) -> list[str]:
    assert task.megatron is not None, "absence() says so"
    folder = out / "tokenizer"
    folder.mkdir()
    shutil.copyfile(task.tokenizer, folder / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": task.separator_piece}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [task.megatron_python, str(task.megatron / "tools" / _script(name)), "--append-eod"]
    command += ["--input", str(task.corpus.plain), "--output-prefix", str(out / "megatron")]
    command += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder)]
    return [*command, *(["--use-gigatoken"] if name == MEGATRON_FAST else ["--workers", str(task.workers)])]


def _worker(task: Task, out: Path, kind: str) -> list[str]:
    arguments = [kind, str(task.corpus.plain), str(task.tokenizer), str(task.separator), str(task.workers), str(out)]
    return [sys.executable, "-m", "benchmarks.packing.worker", *arguments]


def _script(name: str) -> str:
    return "preprocess_data_fast.py" if name == MEGATRON_FAST else "preprocess_data.py"


def _bare_samples(name: str, usage: Usage, out: Path) -> dict[str, Sample]:
    """The times are its own, of tokenizing alone; the memory is the whole process's, texts included."""
    times = json.loads((out / "times.json").read_text(encoding="utf-8"))
    memory = {"peak_gib": usage.peak_gib, "largest_gib": usage.largest_gib}
    samples = {name: times["first"] | memory}
    return samples | ({WARM: times["warm"] | memory} if "warm" in times else {})
