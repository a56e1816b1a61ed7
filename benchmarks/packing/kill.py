"""That a pack survives being killed: one undisturbed and one killed on its way, the same bytes, and the memory of both.

    python benchmarks/packing/synthetic_corpus.py --gb 20 --folder /data/synthetic --compress
    python benchmarks/packing/kill.py /data/synthetic --tokenizer tokenizer.json --scratch /data --name 20gb

The second is killed with SIGKILL at moments drawn at random and started again each time by the same command. In turn
the kill hits the whole process group, as the end of the machine would, and the first process alone, whose workers must
then end by themselves. Both folders are compared file by file. A shard that was finished when the kill came must be the
same file, not only the same bytes, in the end; memory is measured as in `pack.py`.
"""

import dataclasses
import os
import random
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, ROOT, command, describe, markdown_table, write_result
from benchmarks.packing.corpus import default_tokenizer
from benchmarks.packing.process import MeasuredProcess
from benchmarks.training.process import environment
from deconattn.cli import parse, run
from deconattn.durable import write_text
from deconattn.errors import UserError

EARLIEST, LATEST = 0.02, 0.95
"""Of the undisturbed pack's time: between them lie the moments of the kills."""
WORKERS_LEAVE_S = 20.0
"""After which a worker that is still there has not noticed that the first process is gone."""
READ_AT_ONCE = 2**24
COLUMNS = ["run", "s", "CPU s", "peak GiB", "largest process GiB", "finished shards", "ended by"]
Found = dict[str, tuple[int, int]]
"""Finished shards by name: inode, and nanoseconds of its time."""


@dataclass(frozen=True)
class Arguments:
    """Pack undisturbed and killed on the way, and compare."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """What tools/pack.py shall pack."""
    tokenizer: Path | None = field(default_factory=default_tokenizer)
    """As of tools/pack.py."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """As of tools/pack.py."""
    kills: int = 5
    """How often it is killed."""
    seed: int = 0
    """Of the moments."""
    flags: str = ""
    """Further flags of tools/pack.py, in one string: '--dedup exact --shard-tokens 10000000'."""
    name: str = "cpu"
    """Of the result: pack_kill-NAME.json and .md."""
    limit_s: float = 86400
    """Seconds after which a run is stopped and the test has failed."""
    scratch: Path | None = None
    """Folder for both outputs; by default the system's temporary one."""
    out: Path = RESULTS
    """Folder of the result."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("no input; name files, folders or patterns")
        if self.tokenizer is None:
            raise UserError("--tokenizer: give one, as to tools/pack.py")
        for name, least in (("workers", 1), ("kills", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least {least}")

    def pack(self, out: Path) -> list[str]:
        """The command, the same for all runs but for the folder."""
        script = [sys.executable, str(ROOT / "tools" / "pack.py"), *self.inputs, "--tokenizer", str(self.tokenizer)]
        return [*script, "--out", str(out), "--workers", str(self.workers), *shlex.split(self.flags)]


def moments(kills: int, seconds: float, seed: int) -> list[float]:
    """Seconds that each run may take before it is killed: all together a part of what an undisturbed one takes."""
    generator = random.Random(seed)
    drawn = sorted(generator.uniform(EARLIEST, LATEST) * seconds for _ in range(kills))
    return [later - earlier for earlier, later in pairwise([0.0, *drawn])]


def undisturbed(arguments: Arguments, out: Path) -> dict[str, Any]:
    """One pack from beginning to end."""
    with MeasuredProcess(arguments.pack(out), environment(compiles=False)) as process:
        return _last(process, arguments.limit_s, out)


def killed(arguments: Arguments, out: Path, seconds: list[float]) -> list[dict[str, Any]]:
    """Packs of the same folder, each killed after so many seconds, and one more to the end.

    Each row of a kill holds in `finished` the shards that were finished then.
    """
    runs: list[dict[str, Any]] = []
    for number, until in enumerate(seconds):
        with MeasuredProcess(arguments.pack(out), environment(compiles=False)) as process:
            if process.wait(until):  # it was faster than the undisturbed one, or failed
                return [*runs, _last(process, arguments.limit_s, out)]
            workers = psutil.Process(process.pid).children(recursive=True)
            group = number % 2 == 0
            process.kill(group)
            _, left = psutil.wait_procs(workers, timeout=WORKERS_LEAVE_S)
            survivors = sum(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in left)
            ended_by = f"SIGKILL to {'all' if group else 'the first'}" + (f", {survivors} left" if survivors else "")
            row = {"ended_by": ended_by, "survivors": survivors, "finished": finished_shards(unfinished(out))}
            runs.append(dataclasses.asdict(process.usage) | row)
            print(f"run {number + 1}: {ended_by} after {until:.1f} s", file=sys.stderr, flush=True)
    with MeasuredProcess(arguments.pack(out), environment(compiles=False)) as process:
        return [*runs, _last(process, arguments.limit_s, out)]


def unfinished(out: Path) -> Path:
    """Where a pack into `out` keeps its shards until it is whole."""
    return out.with_name(f".{out.name}.partial") / "result"


def finished_shards(folder: Path) -> Found:
    """The shards in a folder that have their final name."""
    found = {path.name: path.stat() for path in sorted(folder.glob("*.arrow")) if not path.name.startswith(".")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def repeated_shards(runs: list[dict[str, Any]], final: Found) -> int:
    """How many of the shards that were finished at a kill are not the same file in the end."""
    seen = {(name, state) for one in runs for name, state in one["finished"].items()}
    return sum(final.get(name) != state for name, state in seen)


def differences(one: Path, other: Path) -> list[str]:
    """Files that are in one of two folders only, or not the same bytes in both."""
    names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    return [str(name) for name in sorted(names) if not _same(one / name, other / name)]


def _same(one: Path, other: Path) -> bool:
    if not one.is_file() or not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while part := left.read(READ_AT_ONCE):
            if part != right.read(READ_AT_ONCE):
                return False
    return True


def _last(process: MeasuredProcess, limit: float, out: Path) -> dict[str, Any]:
    """A run that shall end by itself; raises UserError if it does not, or fails."""
    if not process.wait(limit):
        raise UserError(f"packing took more than --limit-s {limit:.0f}; raise it")
    if process.returncode != 0:
        print(process.output(), file=sys.stderr)
        said = process.output().strip().splitlines()[-1:]
        raise UserError(f"packing ended with code {process.returncode}: {' '.join(said)}")
    return dataclasses.asdict(process.usage) | {"ended_by": "itself", "survivors": 0, "finished": finished_shards(out)}


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    memory = [f"{row['peak_gib']:.2f}", f"{row['largest_gib']:.2f}"]
    times = [f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}"]
    return [name, *times, *memory, str(len(row["finished"])), row["ended_by"]]


def markdown(result: dict[str, Any], machine: str, command: str) -> str:
    """The whole report."""
    runs = [("undisturbed", result["undisturbed"])]
    runs += [(f"killed, run {number}", row) for number, row in enumerate(result["killed"], 1)]
    lines = [f"# Packing, killed {result['kills']} times", "", f"{machine}. `{command}`", ""]
    lines.append(markdown_table(COLUMNS, [cells(*one) for one in runs]))
    return "\n".join([*lines, *(f"- {line}" for line in verdicts(result))]) + "\n"


def verdicts(result: dict[str, Any]) -> list[str]:
    """What came of it, a line each."""
    unlike = result["differences"]
    survivors = sum(row["survivors"] for row in result["killed"])
    finished = [len(row["finished"]) for row in result["killed"][:-1]]
    hint = "" if any(finished) else "; to see them kept, give a larger corpus or a smaller --shard-tokens"
    return [
        f"killed {result['kills']} times of the {result['options']['kills']} asked for, "
        f"with {', '.join(map(str, finished)) or 'no'} shards finished{hint}",
        f"{result['files']} files, {result['bytes']:,} bytes: "
        + (f"not identical: {', '.join(unlike[:5])}" if unlike else "byte-identical"),
        f"finished shards that were written again: {result['repeated_shards']}",
        f"workers that outlived the first process: {survivors}",
        f"left beside the output: {', '.join(result['leftovers']) or 'nothing'}",
    ]


def main() -> int:
    """Pack twice, compare, print, write; 1 unless all is as it should be."""
    arguments = parse(Arguments)
    folder = Path(tempfile.mkdtemp(prefix="pack-kill-", dir=arguments.scratch))
    try:
        # The folders have the same name, should it stand in a file.
        whole, disturbed = folder / "undisturbed" / "packed", folder / "disturbed" / "packed"
        baseline = undisturbed(arguments, whole)
        print(f"undisturbed: {baseline['seconds']:.1f} s", file=sys.stderr, flush=True)
        runs = killed(arguments, disturbed, moments(arguments.kills, baseline["seconds"], arguments.seed))
        files = [path for path in whole.rglob("*") if path.is_file()]
        options = dataclasses.asdict(arguments) | {"tokenizer": os.path.relpath(arguments.tokenizer or "", ROOT)}
        result: dict[str, Any] = {
            "options": {name: value for name, value in options.items() if name not in ("out", "scratch")},
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "kills": len(runs) - 1,
            "differences": differences(whole, disturbed),
            "repeated_shards": repeated_shards(runs[:-1], runs[-1]["finished"]),
            "leftovers": sorted(path.name for path in disturbed.parent.iterdir() if path != disturbed),
            "undisturbed": baseline,
            "killed": runs,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path = arguments.out / f"pack_kill-{arguments.name}.json"
    temporary = path.with_name(f".{path.name}.partial")
    write_result(temporary, result)
    temporary.replace(path)
    report = markdown(result, describe(), command())
    write_text(path.with_suffix(".md"), report)
    print(f"{report}\nwritten: {path}")
    return int(
        result["kills"] < arguments.kills
        or bool(result["differences"] or result["leftovers"])
        or any(row["survivors"] for row in runs)
    )


if __name__ == "__main__":
    run(main)
