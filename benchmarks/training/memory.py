"""Peak memory of a rank, measured, beside what `tools/plan.py` predicts.

    python benchmarks/training/memory.py --size 70m --seq-len 1024 --micro-batch-size 2

Each configuration trains a few optimiser steps through our engine in processes of its own (gloo, CPU). Measured is
the peak of what the process has allocated, less what it held before the model was built. glibc tells: with
`MALLOC_MMAP_THRESHOLD_` every tensor above 64 KiB is a mapping of its own, and `malloc_stats` reports the most bytes
that were ever in mappings, of all threads. So it is what `torch.cuda.max_memory_allocated` is on a GPU. The resident
set is not, as pages that nobody has written to are missing from it (DeepSpeed's bucket is mostly such), nor is
PyTorch's profiler, which misses what gloo's threads release; the former (`VmHWM`) is noted beside. The prediction is
by the same formulas as for GPUs, with a CPU's kernels and gloo's copies.
"""

import ctypes
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, ROOT, describe, markdown_table, write_result
from deconattn.cli import parse, run
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.cost.job import Job
from deconattn.cost.memory import MemorySnapshot, peak
from deconattn.launch.ranks import free_port

TOLERANCE = 0.15
"""Largest deviation of the prediction, relative."""
MAPPINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
"""For glibc: a mapping for anything larger than 64 KiB, given back when it is freed."""


@dataclass(frozen=True)
class Arguments:
    """Measure peak memory on topologies of one and two ranks."""

    size: str = "70m"
    variant: str = "standard"
    pattern: str = "uniform"
    seq_len: int = 1024
    micro_batch_size: int = 2
    accumulation: int = 1
    """Micro-batches in a step."""
    vocab_size: int = 50304
    precision: tuple[str, ...] = ("fp32", "bf16")
    layouts: tuple[str, ...] = ("1 rank", "dp 2", "tp 2", "tp 2 sp")
    """Of: 1 rank, dp 2, tp 2, tp 2 sp, pp 2, cp 2, cp 4."""
    zero: tuple[int, ...] = (0, 1, 2, 3)
    bucket: int = 0
    """DeepSpeed's reduce_bucket_size, elements; 0 is that of ds_configs/."""
    recompute: str = "none"
    steps: int = 2
    name: str = "memory-70m"
    """Of the result, in --out."""
    out: Path = RESULTS
    run: str = ""
    """For the processes of this script: what to measure, JSON."""


LAYOUTS = {
    "1 rank": (1, []),
    "dp 2": (2, []),
    "tp 2": (2, ["--tp", "2"]),
    "tp 2 sp": (2, ["--tp", "2", "--sequence-parallel"]),
    "pp 2": (2, ["--pp", "2"]),
    "cp 2": (2, ["--cp", "2"]),
    "cp 4": (4, ["--cp", "4"]),
}
"""Ranks and flags by name."""


def flags_of(arguments: Arguments, layout: str, precision: str, zero: int, folder: Path) -> list[str]:
    """The training command line of a configuration."""
    ranks, flags = LAYOUTS[layout]
    replicas = ranks if layout == "dp 2" else 1
    made = [
        "--size", arguments.size, "--variant", arguments.variant, "--pattern", arguments.pattern,
        "--seq-len", str(arguments.seq_len), "--vocab-size", str(arguments.vocab_size),
        "--micro-batch-size", str(arguments.micro_batch_size), "--precision", precision, "--zero", str(zero),
        "--global-batch-size", str(arguments.micro_batch_size * arguments.accumulation * replicas), *flags,
    ]  # fmt: skip
    made += ["--recompute", arguments.recompute]
    if arguments.bucket and zero:
        config = json.loads((ROOT / "ds_configs" / f"zero{zero}.json").read_text())
        config["zero_optimization"]["reduce_bucket_size"] = arguments.bucket
        path = folder / f"zero{zero}.json"
        path.write_text(json.dumps(config))
        made += ["--deepspeed-config", str(path)]
    return made


def predict(flags: TrainingFlags, ranks: int) -> MemorySnapshot:
    """The largest moment of any rank, on a CPU."""
    config = model_config(flags.model, flags.model.vocab_size, flags.data.seq_len)
    return peak(Job.of(config, flags, ranks, gpu=False))


def measure(command_line: list[str], ranks: int, steps: int, folder: Path, limit: int = 0) -> list[dict[str, Any]]:
    """Every rank's answer, from fresh processes.

    Args:
        limit: bytes that a rank may have beside what it held before the model was built; 0 for no limit.

    Raises:
        RuntimeError: one of them failed; with the end of what it wrote.
    """
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        answer = folder / f"answer-{rank}.json"
        answer.unlink(missing_ok=True)
        order = json.dumps({"flags": command_line, "steps": steps, "answer": str(answer), "limit": limit})
        environment = os.environ | MAPPINGS | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1",
        }  # fmt: skip
        log = (folder / f"log-{rank}").open("w")
        script = [sys.executable, str(Path(__file__).resolve()), "--run", order]
        processes.append((subprocess.Popen(script, env=environment, stdout=log, stderr=subprocess.STDOUT), answer, log))

    def failed() -> list[int]:
        return [rank for rank, (process, _, _) in enumerate(processes) if process.poll()]

    try:
        while not failed() and any(process.poll() is None for process, _, _ in processes):
            time.sleep(0.2)
        first = failed()[:1]  # the others would have waited for it for ever
    finally:
        for process, _, log in processes:
            process.kill()
            process.wait()
            log.close()
    if first:
        raise RuntimeError(f"rank {first[0]} failed: {(folder / f'log-{first[0]}').read_text()[-1500:]}")
    return [json.loads(answer.read_text()) for _, answer, _ in processes]


def measure_here(order: dict[str, Any]) -> None:
    """One rank: build, train, and write what lived when."""
    import torch

    from deconattn.data import Batch
    from deconattn.model.init import initialize
    from deconattn.parallel.process_group import start_distributed
    from deconattn.parallel.topology import Topology
    from deconattn.train.engine import Engine, empty_model

    flags = parse_training_flags(order["flags"])
    start_distributed()
    topology = Topology.create(flags.engine.tp, flags.engine.pp, flags.engine.cp)
    rows, length, vocabulary = flags.optimization.micro_batch_size, flags.data.seq_len, flags.model.vocab_size
    config = model_config(flags.model, vocabulary, length)
    text = torch.arange(length) % vocabulary
    held, resident = _mapped("mmap"), _status("VmRSS")
    _reset_peak()
    if order["limit"]:
        most = _status("VmData") + order["limit"]
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    model = empty_model(config, flags, topology)
    initialize(model, flags.optimization.seed, text)
    engine = Engine(model, flags, topology)
    starting = _mapped("max mmap") - held
    for step in range(order["steps"]):
        generator = torch.Generator().manual_seed(step * topology.dp_size + topology.dp_rank)
        tokens = torch.randint(vocabulary, (engine.accumulation_steps, rows, length + 1), generator=generator)
        batches = [Batch(micro[:, :-1], micro[:, 1:]) for micro in tokens]
        engine.train_step(batches, flags.optimization.lr)
    peaks = {
        "peak": _mapped("max mmap") - held,
        "starting": starting,
        "resident": _status("VmHWM") - resident,
    }
    Path(order["answer"]).write_text(json.dumps(peaks))


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a configuration, MiB."""
    table = []
    for row in rows:
        where = [row["layout"], row["precision"], str(row["zero"])]
        if "failure" in row:
            table.append([*where, "failed", "", "", "", "", ""])
            continue
        numbers = [row["measured"], row["predicted"], row["starting"], row["resident"]]
        measured, predicted, starting, resident = (f"{number / 2**20:,.0f}" for number in numbers)
        table.append([*where, measured, predicted, f"{row['ratio']:.3f}", row["moment"], starting, resident])
    columns = [
        "layout", "precision", "ZeRO", "measured", "predicted", "ratio", "predicted moment", "start-up", "resident"
    ]  # fmt: skip
    return markdown_table(columns, table)


def main() -> int:
    """Every configuration; 1 if one failed or a prediction is further off than :data:`TOLERANCE`."""
    arguments = parse(Arguments)
    if arguments.run:
        measure_here(json.loads(arguments.run))
        return 0
    rows: list[dict[str, Any]] = []
    options = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in ("out", "run")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for precision in arguments.precision:
            for layout in arguments.layouts:
                for zero in arguments.zero:
                    if (precision == "bf16" and zero == 0) or (layout == "pp 2" and zero > 1):
                        continue
                    row = {"layout": layout, "precision": precision, "zero": zero}
                    rows.append(row | compare(arguments, layout, precision, zero, folder))
                    print(json.dumps(rows[-1]), flush=True)
                    write_result(arguments.out / f"{arguments.name}.json", {"options": options, "runs": rows})
    print(f"\n{describe()}\n\n{summary(rows)}")
    return 1 if any("failure" in row or abs(row["ratio"] - 1) > TOLERANCE for row in rows) else 0


def compare(arguments: Arguments, layout: str, precision: str, zero: int, folder: Path) -> dict[str, Any]:
    """Measured and predicted bytes of one configuration, of the rank that needs most."""
    ranks, _ = LAYOUTS[layout]
    command_line = flags_of(arguments, layout, precision, zero, folder)
    predicted = predict(parse_training_flags(command_line), ranks)
    try:
        answers = measure(command_line, ranks, arguments.steps, folder)
    except RuntimeError as error:
        return {"failure": str(error)}
    most = max(answers, key=lambda answer: answer["peak"])
    return {
        "measured": most["peak"],
        "predicted": predicted.memory.total,
        "ratio": round(predicted.memory.total / most["peak"], 4),
        "moment": predicted.name,
        "starting": most["starting"],
        "resident": most["resident"],
        "kinds": dataclasses.asdict(predicted.memory),
        "ranks": answers,
    }


def _mapped(name: str) -> int:
    """Bytes in glibc's mappings, now (`mmap`) or at most (`max mmap`)."""
    with tempfile.TemporaryFile() as captured:
        saved = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            ctypes.CDLL(None).malloc_stats()  # writes on standard error, past Python
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        captured.seek(0)
        stats = captured.read().decode()
    if name == "max mmap":
        return int(re.findall(r"^max mmap bytes +=\s+(\d+)", stats, re.MULTILINE)[0])
    *arenas, total = map(int, re.findall(r"^in use bytes +=\s+(\d+)", stats, re.MULTILINE))
    return total - sum(arenas)


def _status(name: str) -> int:
    """A field of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    """Let VmHWM start again from here, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("VmHWM cannot be reset: the resident set includes start-up", file=sys.stderr)


if __name__ == "__main__":
    run(main)
