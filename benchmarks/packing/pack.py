"""Packing speed: `tools/pack.py` beside Megatron-LM's two scripts, `datasets.map` and the bare tokenizers, in one run.

    python benchmarks/packing/pack.py --megatron ../Megatron-LM --megatron-python ../megatron-env/bin/python

All get the same documents, tokenizer and cores (the processes are pinned to them), everything in one stream without a
validation split, and take turns round by round. What is measured is the whole process, from its start to its end: wall
time, CPU time of all its processes, and peak memory of the process tree. Two bare tokenizers, whose texts are in memory
before the clock starts, show what there is to reach. After the rounds the token streams are read from what each has
written and compared id by id.

Contestants read the corpus as plain JSON lines, which all of them can; "tools/pack.py (.zst)" reads the same lines
compressed. Start-up is what a corpus of one document takes, measured in every round: small corpora measure little else.

Megatron-LM runs on a CPU without a change. From the folder that holds this checkout, with DeconAttn installed in
`env` together with `gigatoken`, `awkward` and `datasets`:

    git clone --depth 1 https://github.com/NVIDIA/Megatron-LM
    python -m venv megatron-env                          # of the same Python
    packages=megatron-env/lib/python3.11/site-packages
    realpath env/lib/python3.11/site-packages > $packages/ours.pth
    megatron-env/bin/pip install einops                  # where ours has it not
    # Before Python 3.12 `typing` has no `override`, which Megatron imports:
    echo 'import typing, typing_extensions; typing.override = typing_extensions.override' > $packages/override.pth

Its warnings about Transformer Engine and Apex concern training. The folder with the tokenizer that it wants (a
tokenizer_config.json that names the separator, without which `preprocess_data.py --append-eod` waits for ever) is made
here.
"""

import dataclasses
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, ROOT, command, describe, write_result
from benchmarks.packing.contestants import (
    BARE,
    NAMES,
    OURS,
    TOKENIZERS,
    Contestant,
    Sample,
    Task,
    absence,
    contestants,
)
from benchmarks.packing.corpus import default_corpus, default_tokenizer, make_corpus
from benchmarks.packing.report import COLUMNS, ON_TERMINAL, cells, markdown, notes, summarize
from benchmarks.packing.streams import TokenStream, first_difference
from deconattn.cli import parse, run
from deconattn.durable import write_text
from deconattn.errors import UserError

LEFT_OUT = ("out", "scratch", "megatron", "megatron_python")
"""Options that a result does not tell: places of this machine."""
LIBRARIES = ("tokenizers", "gigatoken", "datasets", "pyarrow", "orjson")


def _megatron() -> Path | None:
    return Path(os.environ["MEGATRON_LM"]) if os.environ.get("MEGATRON_LM") else None


@dataclass(frozen=True)
class Arguments:
    """Packing speed of tools/pack.py, of others, and of the bare tokenizers."""

    corpus: tuple[Path, ...] = field(default_factory=default_corpus)
    """Files of JSON lines with a `text`: .jsonl, .jsonl.zst or .jsonl.gz."""
    tokenizer: Path | None = field(default_factory=default_tokenizer)
    """A tokenizer.json."""
    cores: int = 0
    """Cores that every contestant is pinned to, and its workers; 0 is all that there are."""
    rounds: int = 3
    """Runs of each contestant."""
    limit_mb: float = 0
    """Megabytes (10^6 bytes of text) from the beginning of the corpus, for a quick run; 0 is all."""
    contestants: tuple[str, ...] = NAMES
    """Who takes part."""
    megatron: Path | None = field(default_factory=_megatron)
    """A checkout of Megatron-LM; by default what the environment variable MEGATRON_LM names."""
    megatron_python: str = sys.executable
    """The Python that has what it imports."""
    limit_s: float = 1800
    """Seconds after which a run is stopped and its contestant has failed."""
    scratch: Path | None = None
    """Folder for the corpus and what the contestants write; by default the system's temporary one."""
    out: Path = RESULTS
    """Folder of pack-Ncores.json and .md."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.contestants if name not in NAMES]:
            raise UserError(f"--contestants {unknown[0]!r}: choose from {', '.join(map(repr, NAMES))}")
        if self.tokenizer is None or self.tokenizer.suffix != ".json":
            raise UserError(f"--tokenizer {self.tokenizer}: give a tokenizer.json, which all contestants read")
        available = len(os.sched_getaffinity(0))
        if not 0 <= self.cores <= available:
            raise UserError(f"--cores {self.cores}: there are {available}")
        for name in ("rounds", "limit_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")
        if self.limit_mb < 0:
            raise UserError(f"--limit-mb {self.limit_mb}: must be at least 0")


class Rounds:
    """The contestants' turns.

    Attributes:
        samples: by measurement one a round, in order.
        startup: by contestant what one document took, one a round; not of bare tokenizers.
        failures: by contestant what it said; it has no samples then.
    """

    def __init__(self, players: list[Contestant], task: Task, folder: Path) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self.startup: dict[str, list[Sample]] = {}
        self.failures: dict[str, str] = {}
        self._players, self._task, self._folder = players, task, folder

    def play(self, rounds: int, one_document: Task) -> None:
        """So many rounds, after one of start-ups that brings everybody's libraries into the page cache."""
        for player in self._players:
            self._turn(player, one_document)
        for number in range(rounds):
            for player in self._players:
                started = {} if player.name in BARE else self._turn(player, one_document)
                for name, sample in self._turn(player, self._task).items():
                    self.samples.setdefault(name, []).append(sample)
                    print(f"round {number + 1}: {name} {sample['seconds']:.2f} s", file=sys.stderr, flush=True)
                for name, sample in started.items():
                    self.startup.setdefault(name, []).append(sample)

    def streams(self) -> dict[str, TokenStream]:
        """What each has left in its last turn."""
        return {one.name: one.read(self._out(one)) for one in self._players if one.name not in self.failures}

    def _turn(self, player: Contestant, task: Task) -> dict[str, Sample]:
        if player.name in self.failures:
            return {}
        try:
            return player.run(task, self._out(player))
        except RuntimeError as error:  # the others go on
            self.failures[player.name] = str(error)
            self.samples.pop(player.name, None)
            print(f"{player.name} failed: {error}", file=sys.stderr, flush=True)
            return {}

    def _out(self, player: Contestant) -> Path:
        return self._folder / str(self._players.index(player))


def compare(streams: dict[str, TokenStream]) -> tuple[str | None, dict[str, str | None]]:
    """The one that all are compared with, the exact library's where it ran, and where each of the others differs."""
    reference = next((name for name in (TOKENIZERS, OURS, *streams) if name in streams), None)
    if reference is None:
        return None, {}
    others = {name: stream for name, stream in streams.items() if name != reference}
    return reference, {name: first_difference(streams[reference], stream) for name, stream in others.items()}


def main() -> int:
    """Measure, compare, print, write; 1 if a contestant failed or its tokens differ."""
    arguments = parse(Arguments)
    from deconattn.data.tokenizing.tokenizer import load_tokenizer

    assert arguments.tokenizer is not None, "__post_init__ says so"
    separator = load_tokenizer(arguments.tokenizer).eos_token_id
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores or None]
    os.sched_setaffinity(0, cores)  # of this process, and so of all that it starts
    folder = Path(tempfile.mkdtemp(prefix="pack-benchmark-", dir=arguments.scratch))
    try:
        (folder / "one").mkdir()
        task = Task(
            corpus=make_corpus(arguments.corpus, folder, arguments.limit_mb),
            tokenizer=arguments.tokenizer.resolve(),
            separator=separator,
            separator_piece=_piece(arguments.tokenizer, separator),
            workers=len(cores),
            limit=arguments.limit_s,
            megatron=arguments.megatron and arguments.megatron.resolve(),
            megatron_python=arguments.megatron_python,
        )
        one_document = dataclasses.replace(task, corpus=make_corpus([task.corpus.plain], folder / "one", 1e-6))
        absent = {name: reason for name in arguments.contestants if (reason := absence(name, task))}
        players = [one for name, one in contestants().items() if name in arguments.contestants and name not in absent]
        rounds = Rounds(players, task, folder)
        rounds.play(arguments.rounds, one_document)
        streams = rounds.streams()
        reference, differences = compare(streams)
        tokens = len(streams[reference].tokens) if reference else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    options = dataclasses.asdict(arguments) | {"workers": len(cores)}
    result: dict[str, Any] = {
        "options": {name: _plain(value) for name, value in options.items() if name not in LEFT_OUT},
        "libraries": _libraries(arguments.megatron),
        "corpus": {"documents": task.corpus.documents, "text_bytes": task.corpus.text_bytes, "tokens": tokens},
        "summary": summarize(rounds.samples, tokens, task.corpus.text_bytes, rounds.startup),
        "absent": absent,
        "failures": rounds.failures,
        "reference": reference,
        "differences": differences,
        "samples": rounds.samples,
        "startup": rounds.startup,
    }
    _print(result)
    path = arguments.out / f"pack-{len(cores)}cores.json"
    unfinished = path.with_name(f".{path.name}.partial")
    write_result(unfinished, result)
    unfinished.replace(path)
    write_text(path.with_suffix(".md"), markdown(result, describe(), command()))
    print(f"written: {path}")
    return int(bool(rounds.failures) or any(differences.values()))


def _piece(tokenizer: Path, separator: int) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(tokenizer)).id_to_token(separator))


def _libraries(megatron: Path | None) -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    information = megatron and megatron / "megatron" / "core" / "package_info.py"
    if information and information.is_file():
        numbers = re.findall(r"^(?:MAJOR|MINOR|PATCH) = (\d+)$", information.read_text(encoding="utf-8"), re.MULTILINE)
        found["Megatron core"] = ".".join(numbers)
    return found


def _print(result: dict[str, Any]) -> None:
    table = Table()
    for column in ON_TERMINAL:
        table.add_column(COLUMNS[column], justify="right" if column else "left", no_wrap=not column)
    for name, row in result["summary"].items():
        shown = cells(name, row)
        table.add_row(*(shown[column] for column in ON_TERMINAL))
    console = Console(width=max(140, Console().width))
    print(
        f"\n{result['corpus']['text_bytes'] / 1e6:.1f} MB of text, {result['corpus']['tokens']:,} tokens, {describe()}"
    )
    console.print(table, highlight=False)
    for line in notes(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return os.path.relpath(value, ROOT) if isinstance(value, Path) else value


if __name__ == "__main__":
    run(main)
