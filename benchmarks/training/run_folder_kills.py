"""That a run survives being killed, and has one owner: kills at random moments, and pairs of simultaneous resumes.

    OMP_NUM_THREADS=1 python benchmarks/training/run_folder_kills.py

A small training is run undisturbed. Then the same training is killed with SIGKILL, its whole process group, at moments
drawn at random, from its imports to its last checkpoint, and resumed by the same command and `--resume`, until it is
finished; and begun anew until there have been so many kills. At last copies of a run that was stopped half-way are
resumed by two commands at once, of which one must go on and the other say in one line who has the folder. Each end is
compared with the undisturbed run: weights and moments bit for bit, the rows of metrics.jsonl, and what lies about.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.machine import RESULTS, command, describe, markdown_table, write_result
from benchmarks.packing.process import MeasuredProcess
from benchmarks.training.process import environment
from deconattn.checkpoint.format import read_checkpoint, steps_in
from deconattn.checkpoint.manifest import is_whole, step_of
from deconattn.cli import parse, run
from deconattn.data import pack_demo
from deconattn.durable import write_text
from deconattn.errors import UserError
from deconattn.train.metrics import METRICS

FLAGS = (
    "--hidden-size 32 --intermediate-size 64 --num-hidden-layers 2 --num-attention-heads 2 --seq-len 32 "
    "--global-batch-size 4 --micro-batch-size 2 --variant rndemb --pattern 1:1 --precision fp32 --keep 2 "
    "--save-every 4 --eval-every 10 --eval-sequences 8"
).split()
EARLIEST, LATEST = 0.02, 0.95
"""Of the undisturbed run's time: between them lie the moments of the kills."""
TOGETHER_SECONDS = 0.5
"""By so much at most the second of a pair comes later."""
TIMED = ("tokens_per_second", "mfu", "memory_gib", "step_seconds", "busy_seconds")
FIELDS = ["run", "attempt", "seconds", "ended_by", "step", "last_row"]
COLUMNS = ["run", "attempt", "s", "ended by", "newest whole checkpoint", "last row"]


@dataclass(frozen=True)
class Arguments:
    """Kill small trainings at random moments, resume them, and resume them twice at once."""

    kills: int = 40
    """How many."""
    pairs: int = 11
    """Of simultaneous resumes."""
    steps: int = 120
    """Of a training."""
    save_mode: Literal["async", "sync"] = "async"
    """How the trainings save."""
    seed: int = 0
    """Of the moments."""
    name: str = "cpu"
    """Of the result: run_folder_kills-NAME.json and .md."""
    limit_s: float = 600
    """Seconds after which a training is stopped and the test has failed."""
    scratch: tyro.conf.Positional[Path | None] = None
    """Folder for the runs; by default the system's temporary one."""
    out: Path = RESULTS
    """Folder of the result."""


def rank(arguments: Arguments, run: Path, data: Path) -> MeasuredProcess:
    """Start a training's only rank: anew, or to resume where there is something."""
    words = [sys.executable, "-m", "deconattn.launch.worker", "--save", str(run)]
    if (run / "config.json").is_file():
        words += ["--resume"]
    else:
        words += ["--data", str(data), *FLAGS, "--steps", str(arguments.steps), "--save-mode", arguments.save_mode]
    return MeasuredProcess(words, environment(compiles=False))


def finish(process: MeasuredProcess, limit: float) -> tuple[int, str]:
    """Wait for a rank that ends by itself; return its exit code and the end of what it said."""
    with process:
        if not process.wait(limit):
            raise UserError(f"a training took more than --limit-s {limit:.0f}; raise it")
        return process.returncode or 0, process.output()


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the machine; a last line that was cut short is none."""
    path = run / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in whole]


def newest(run: Path) -> int:
    """The step of the newest whole checkpoint, -1 where there is none."""
    return max((step_of(folder) for folder in steps_in(run) if is_whole(folder)), default=-1)


def faults(run: Path, whole: Path) -> list[str]:
    """What a finished run has not as the undisturbed one has it."""
    found = []
    one, other = (read_checkpoint(steps_in(folder)[0]) for folder in (run, whole))
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        left, right = dict(one.tensors(kind)), dict(other.tensors(kind))
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            found.append(f"{kind} of step {one.step}")
    if one.progress != other.progress:
        found.append(f"progress {one.progress}")
    if rows(run) != rows(whole):
        found.append(METRICS)
    here, there = ({str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (run, whole))
    # A kill between a save and its retention leaves a checkpoint more, which is no fault.
    surplus = {name for name in here - there if not name.startswith("checkpoints/step-")}
    return found + [f"left: {name}" for name in sorted(surplus)] + [f"missing: {name}" for name in sorted(there - here)]


def killed(arguments: Arguments, folder: Path, data: Path, whole: Path, seconds: float) -> list[dict[str, Any]]:
    """Trainings until there were so many kills; a row for each attempt, the last of a run with its faults."""
    dice, kills, table = random.Random(arguments.seed), 0, []
    for number in range(1, arguments.kills + 2):
        run, attempt, before = folder / f"killed-{number}" / "run", 0, -1
        while True:
            attempt += 1
            moment = dice.uniform(EARLIEST, LATEST) * seconds if kills < arguments.kills else arguments.limit_s
            process = rank(arguments, run, data)
            with process:
                ended = process.wait(moment)
                process.kill()
                said = process.output().strip().splitlines()[-1:]
            row: dict[str, Any] = {
                "run": number,
                "attempt": attempt,
                "seconds": process.usage.seconds,
                "step": newest(run),
            }
            row |= {"last_row": max((line["step"] for line in rows(run)), default=0), "faults": []}
            if ended and process.returncode:
                raise UserError(f"a training ended with exit code {process.returncode}: {' '.join(said)}")
            kills += not ended
            row["ended_by"] = "itself" if ended else "SIGKILL"
            if row["step"] < before:
                row["faults"] = [f"step {before} is lost"]
            before = row["step"]
            table.append(row)
            print(f"run {number}, attempt {attempt}: {row}", file=sys.stderr, flush=True)
            if ended:
                row["faults"] += faults(run, whole)
                shutil.rmtree(run.parent)
                break
        if kills >= arguments.kills:
            break
    return table


def pair(arguments: Arguments, half: Path, folder: Path, whole: Path, delay: float) -> dict[str, Any]:
    """Two resumes of a copy of a run at once: their exit codes, the refusal, and what is wrong in the end."""
    run = Path(shutil.copytree(half, folder / "pair" / "run"))
    first = rank(arguments, run, run)
    time.sleep(delay)
    endings = sorted(finish(process, arguments.limit_s) for process in (first, rank(arguments, run, run)))
    (codes, said) = [code for code, _ in endings], endings[1][1].strip()
    found = faults(run, whole)
    if codes != [0, 2]:
        found.append(f"exit codes {codes}")
    refusal = [line for line in said.splitlines() if line.startswith("error: ")]
    if len(refusal) != 1 or "is in use by pid" not in refusal[0] or "Traceback" in said:
        found.append(f"said: {said}")
    shutil.rmtree(run.parent)
    return {"delay": delay, "codes": codes, "faults": found}


def stopped(arguments: Arguments, run: Path, data: Path) -> None:
    """Train until there are checkpoints, and ask for a stop."""
    with rank(arguments, run, data) as process:
        while newest(run) < arguments.steps // 4 and not process.wait(0.05):
            pass
        os.kill(process.pid, signal.SIGTERM)
        if not process.wait(arguments.limit_s) or process.returncode or newest(run) >= arguments.steps:
            raise UserError("the training ended before it could be stopped; give more --steps")


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    lines = [f"# A run folder, killed {result['kills']} times and resumed twice at once", ""]
    lines += [f"{describe()}. `{command()}`", ""]
    cells = [
        [f"{row[name]:.1f}" if name == "seconds" else str(row[name]) for name in FIELDS] for row in result["killed"]
    ]
    finished = [row for row in result["killed"] if row["ended_by"] == "itself"]
    wrong = [fault for row in [*result["killed"], *result["pairs"]] for fault in row["faults"]]
    lines += [
        markdown_table(COLUMNS, cells),
        f"- {result['kills']} kills over {len(finished)} runs of {result['options']['steps']} steps, all finished; "
        "weights, moments and rows of the undisturbed run: "
        f"{sum(not row['faults'] for row in finished)} of {len(finished)}",
        f"- {len(result['pairs'])} pairs of simultaneous resumes; one went on to the undisturbed end and the other "
        f"was refused in one line: {sum(not row['faults'] for row in result['pairs'])} of {len(result['pairs'])}",
        f"- faults: {'; '.join(wrong) or 'none'}",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Kill, resume, compare, print, write; 1 unless all is as it should be."""
    arguments = parse(Arguments)
    folder = Path(tempfile.mkdtemp(prefix="run-folder-kills-", dir=arguments.scratch))
    try:
        data, whole, half = folder / "data", folder / "whole" / "run", folder / "half" / "run"
        pack_demo(data)
        start = time.perf_counter()
        code, said = finish(rank(arguments, whole, data), arguments.limit_s)
        if code:
            raise UserError(f"the undisturbed training ended with exit code {code}: {said}")
        seconds = time.perf_counter() - start
        print(f"undisturbed: {seconds:.1f} s", file=sys.stderr, flush=True)
        table = killed(arguments, folder, data, whole, seconds)
        stopped(arguments, half, data)
        dice, pairs = random.Random(arguments.seed), []
        for number in range(arguments.pairs):
            pairs.append(pair(arguments, half, folder, whole, dice.uniform(0, TOGETHER_SECONDS)))
            print(f"pair {number + 1}: {pairs[-1]}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in ("out", "scratch")}
    result: dict[str, Any] = {"options": options, "undisturbed_s": seconds, "killed": table, "pairs": pairs}
    result["kills"] = sum(row["ended_by"] == "SIGKILL" for row in table)
    path = arguments.out / f"run_folder_kills-{arguments.name}.json"
    write_result(path, result)
    report = markdown(result)
    write_text(path.with_suffix(".md"), report)
    print(f"{report}\nwritten: {path}")
    return int(result["kills"] < arguments.kills or any(row["faults"] for row in [*table, *pairs]))


if __name__ == "__main__":
    run(main)
