"""A short training of every variant in pattern 1:1 on one GPU: does it learn, at what speed, in how much memory.

    python benchmarks/gpu_train.py --data PACKED --seconds 330 --out benchmarks/results

One variant goes through `launch.sh`, with validation and checkpoint; then each has a process of its own around
the same engine, without checkpoints, which take longer than the training. A run ends after --steps, or when its
share of --seconds is spent. It passes if it skipped no step and its loss fell.
"""

import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, markdown_table, write_result
from deconattn.cli import parse, run
from deconattn.mixers import variant_names
from deconattn.train.metrics import METRICS

SMALLEST_FALL = 0.2
"""Nats by which the last losses must lie under the first."""


@dataclass(frozen=True)
class Arguments:
    """Train every variant for a moment."""

    data: Path
    """A packed corpus."""
    size: str = "500m"
    pattern: str = "1:1"
    precision: str = "bf16"
    seq_len: int = 2048
    batch_size: int = 8
    """Sequences a step, in one micro-batch."""
    steps: int = 120
    """Optimiser steps, at most."""
    launched: str = "fixedseq"
    """The variant that goes through launch.sh as well; empty for none."""
    launched_steps: int = 30
    """Its steps there."""
    variants: tuple[str, ...] = ()
    """Variants; none is all."""
    seconds: float = 330.0
    """For everything."""
    out: Path = RESULTS
    """Folder of gpu_train.json and gpu_train.md."""
    run: str = ""
    """For the processes of this script: the variant to train here; --seconds are its own."""

    def training(self, variant: str, steps: int) -> list[str]:
        """Flags of a run."""
        return [
            "--size", self.size, "--variant", variant, "--pattern", self.pattern, "--precision", self.precision,
            "--seq-len", str(self.seq_len), "--global-batch-size", str(self.batch_size),
            "--micro-batch-size", str(self.batch_size), "--steps", str(steps), "--warmup-steps", str(steps // 10),
            "--data", str(self.data),
        ]  # fmt: skip


def train_here(arguments: Arguments, variant: str) -> dict[str, Any]:
    """Train in this process until the steps are done or the time is up, without validation and checkpoints."""
    start = time.perf_counter()
    import torch

    from deconattn.config import model_config
    from deconattn.cost.flops import training_flops
    from deconattn.cost.hardware import peak_flops
    from deconattn.mixers import mixer_class
    from deconattn.model.causal_lm import CausalLM
    from deconattn.model.init import initialize
    from deconattn.train import runtime
    from deconattn.train.command_line import parse_training_flags
    from deconattn.train.engine import Engine
    from deconattn.train.inputs import TrainingData
    from deconattn.train.schedule import learning_rate

    flags = parse_training_flags(arguments.training(variant, arguments.steps))
    runtime.start_distributed()
    data = TrainingData(flags.data.data, flags)
    config = model_config(flags.model, data.vocab_size, flags.data.seq_len)
    model = CausalLM(config)
    text = any(mixer_class(name).fixed_stream == "text" for name in config.layer_variants)
    initialize(model, flags.optimization.seed, data.fixed_ids() if text else None)
    engine = Engine(model, flags)
    losses: list[float] = []
    norms: list[float] = []
    times: list[float] = []
    skipped = 0
    started = time.perf_counter() - start
    for step in range(arguments.steps):
        if times and time.perf_counter() - start + 2 * times[-1] > arguments.seconds:
            break
        before = time.perf_counter()
        rate = learning_rate(step, flags.optimization.lr, flags.warmup_steps, arguments.steps)
        result = engine.train_step(data.micro_batches(step, 0, 1), rate)
        times.append(time.perf_counter() - before)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        skipped += result.skipped
    tokens = arguments.batch_size * arguments.seq_len
    a_step = statistics.median(times[3:] or times)
    cuda = torch.cuda.is_available()
    peak = peak_flops(torch.cuda.get_device_name()) if cuda else None
    flops = training_flops(config, arguments.batch_size, arguments.seq_len)
    return {
        "losses": losses, "grad_norms": norms, "skipped_steps": skipped, "startup_seconds": started,
        "tokens_per_second": tokens / a_step, "mfu": flops / a_step / peak if peak else None,
        "memory_gib": runtime.memory_gib(), "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def in_a_process(arguments: Arguments, variant: str, seconds: float) -> dict[str, Any]:
    """:func:`train_here` in a process of its own, so that peak memory and failures are its own too."""
    script = [sys.executable, str(Path(__file__).resolve()), "--run", variant, "--seconds", str(seconds)]
    for field in dataclasses.fields(arguments):
        if field.name not in ("run", "seconds", "variants", "out", "launched"):
            script += ["--" + field.name.replace("_", "-"), str(getattr(arguments, field.name))]
    with tempfile.TemporaryDirectory() as folder:
        output = _finish([*script, "--out", folder], seconds + 30)
        path = Path(folder) / "run.json"
        return json.loads(path.read_text()) if path.is_file() else {"failure": output}


def launched(arguments: Arguments, seconds: float) -> dict[str, Any]:
    """The same through `launch.sh`, from the corpus to the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save = Path(folder) / "run"
        flags = [*arguments.training(arguments.launched, arguments.launched_steps), "--save", str(save), "--keep", "1"]
        start = time.perf_counter()
        output = _finish([str(ROOT / "launch.sh"), *flags, "--eval-sequences", str(2 * arguments.batch_size)], seconds)
        wall = time.perf_counter() - start
        path = save / METRICS
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        steps = [row for row in rows if "loss" in row]
        checkpoint = save / "checkpoints" / f"step-{arguments.launched_steps}"
        if len(steps) < arguments.launched_steps or not checkpoint.is_dir():
            return {"failure": output}
        rates = [row for row in steps[3:] if "tokens_per_second" in row] or steps
        return {
            "losses": [row["loss"] for row in steps], "grad_norms": [row["grad_norm"] for row in steps],
            "skipped_steps": steps[-1]["skipped_steps"], "val_loss": rows[-1].get("val_loss"), "wall_seconds": wall,
            "tokens_per_second": statistics.median(row.get("tokens_per_second", 0.0) for row in rates),
            "mfu": statistics.median(row["mfu"] for row in rates) if "mfu" in rates[0] else None,
            "memory_gib": max(row["memory_gib"] for row in steps),
            "checkpoint_gib": sum(file.stat().st_size for file in checkpoint.rglob("*")) / 2**30,
        }  # fmt: skip


def verdict(result: dict[str, Any]) -> str:
    """`yes`, or what is wrong with a run."""
    if "failure" in result:
        return "failed"
    losses = [float(loss) for loss in result["losses"]]
    if result["skipped_steps"]:
        return f"{result['skipped_steps']} steps skipped"
    if not all(map(math.isfinite, losses)):
        return "loss not finite"
    first, last = ends(losses)
    return "yes" if last < first - SMALLEST_FALL else f"loss did not fall: {first:.3f} to {last:.3f}"


def ends(losses: Sequence[float]) -> tuple[float, float]:
    """Mean of the first two and of the last five losses (fewer of a short run)."""
    count = max(1, min(5, len(losses) // 2))
    return statistics.fmean(losses[:2]), statistics.fmean(losses[-count:])


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a run."""
    rows = []
    for name, result in results.items():
        state = verdict(result)
        if "failure" in result:
            rows.append([name, *[""] * 7, state])
            continue
        first, last = ends([float(loss) for loss in result["losses"]])
        mfu = f"{result['mfu']:.1%}" if result["mfu"] else "unknown"
        rows.append([
            name, str(len(result["losses"])), f"{first:.3f}", f"{last:.3f}", str(result["skipped_steps"]),
            f"{result['tokens_per_second']:,.0f}", mfu, f"{result['memory_gib']:.1f}", state,
        ])  # fmt: skip
    columns = ["run", "steps", "first loss", "last loss", "skipped", "tokens/s", "MFU", "GiB", "passed"]
    return markdown_table(columns, rows)


def main() -> int:
    """Every run in its share of the time; 1 if one did not pass."""
    arguments = parse(Arguments)
    if arguments.run:
        (arguments.out / "run.json").write_text(json.dumps(train_here(arguments, arguments.run)))
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that what was started is ended too
    end = time.monotonic() + arguments.seconds
    options = {field: str(value) for field, value in vars(arguments).items() if field not in ("out", "run", "data")}
    variants = list(arguments.variants or variant_names())
    results: dict[str, dict[str, Any]] = {}
    jobs: list[str | None] = [*([None] if arguments.launched else []), *variants]  # None is the launched one
    for number, variant in enumerate(jobs):
        share = (end - time.monotonic()) / (len(jobs) - number)
        name = variant or f"{arguments.launched}, launch.sh"
        if share < 5:
            results[name] = {"failure": "no time left"}
        elif variant is None:
            results[name] = launched(arguments, 2.5 * share)
        else:
            results[name] = in_a_process(arguments, variant, share - 3)  # what ending the process takes
        print(f"{name}: {verdict(results[name])}", flush=True)
        if "failure" in results[name]:
            print(results[name]["failure"], flush=True)
        write_result(arguments.out / "gpu_train.json", {"options": options, "runs": results})
        (arguments.out / "gpu_train.md").write_text(summary(results), encoding="utf-8")
    print(summary(results))
    return 1 if any(verdict(result) != "yes" for result in results.values()) else 0


def _finish(command: list[str], seconds: float) -> str:
    """Run a command; it is stopped, with its children, after so many seconds. Returns the end of its output."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())
        try:
            code: int | str = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = f"none: stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
                process.wait()
        output.seek(0)
        return f"{output.read()[-2000:]}\nexit code {code}"


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "TORCHDYNAMO_DISABLE": "1"}


if __name__ == "__main__":
    run(main)
