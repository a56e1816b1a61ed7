"""A short training of every variant in pattern 1:1 on one GPU: does it learn?

    python benchmarks/training/learn.py --data PACKED --seconds 120 --out benchmarks/results

One variant goes through `launch.sh`, with validation and checkpoint; then each has a process of its own around
the same engine, without checkpoints, which take longer than the training. A run ends after --steps, or when its
share of --seconds is spent. It passes if it skipped no step and its loss fell.
"""

import dataclasses
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, ROOT, markdown_table, write_result
from benchmarks.training.process import (
    OUTPUT_SHOWN,
    TrainingProcess,
    end_tree,
    environment,
    output_file,
    wait_for_turn,
)
from benchmarks.training.summary import device_slug
from deconattn.cli import parse, run
from deconattn.mixers import variant_names
from deconattn.train.metrics import METRICS

SMALLEST_FALL = 0.2
"""Nats by which the last losses must lie under the first."""
SHORTEST_TRAINING = 5.0
"""Seconds under which a training is not begun."""
ENDING = 2.0
"""Seconds that ending a process takes."""


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
    seconds: float = 120.0
    """For everything."""
    out: Path = RESULTS
    """Folder of train_learn-DEVICE.json and train_learn-DEVICE.md."""
    run: str = ""
    """For the processes of this script: the variant to train; --seconds are its own."""

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
    from deconattn.config.command_line import parse_training_flags
    from deconattn.config.flags import model_config
    from deconattn.mixers import mixer_class
    from deconattn.model.causal_lm import CausalLM
    from deconattn.model.init import initialize
    from deconattn.parallel import process_group
    from deconattn.train.engine import Engine
    from deconattn.train.inputs import TrainingData
    from deconattn.train.metrics import memory_gib
    from deconattn.train.schedule import Schedule

    flags = parse_training_flags(arguments.training(variant, arguments.steps))
    data = TrainingData(flags.data.data, flags)
    config = model_config(flags.model, data.vocab_size, flags.data.seq_len)
    model = CausalLM(config)
    text = any(mixer_class(name).fixed_stream == "text" for name in config.layer_variants)
    initialize(model, flags.optimization.seed, data.fixed_ids() if text else None)
    wait_for_turn()
    start = time.perf_counter()
    process_group.start_distributed()
    engine = Engine(model, flags)
    losses: list[float] = []
    norms: list[float] = []
    times: list[float] = []
    skipped = 0
    started = time.perf_counter() - start
    batches = data.loader(0, 0, 1, pin=engine.device.type == "cuda")
    schedule = Schedule.of(flags)
    for step in range(arguments.steps):
        if times and time.perf_counter() - start + 2 * times[-1] > arguments.seconds:
            break
        before = time.perf_counter()
        rate = schedule.rate(step)
        result = engine.train_step(batches.take(1), rate)
        times.append(time.perf_counter() - before)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        skipped += result.skipped
    batches.close()
    return {
        "losses": losses, "grad_norms": norms, "skipped_steps": skipped, "startup_seconds": started,
        "tokens_per_second": arguments.batch_size * arguments.seq_len / statistics.median(times[3:] or times),
        "memory_gib": memory_gib(), "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def prepared(arguments: Arguments, variant: str, seconds: float) -> TrainingProcess:
    """A process that will do :func:`train_here`."""
    script = [str(Path(__file__).resolve()), "--run", variant, "--seconds", str(seconds)]
    for field in dataclasses.fields(arguments):
        if field.name not in ("run", "seconds", "variants", "out", "launched"):
            script += ["--" + field.name.replace("_", "-"), str(getattr(arguments, field.name))]
    return TrainingProcess(script)


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
            rows.append([name, *[""] * 6, state])
            continue
        first, last = ends([float(loss) for loss in result["losses"]])
        rows.append([
            name, str(len(result["losses"])), f"{first:.3f}", f"{last:.3f}", str(result["skipped_steps"]),
            f"{result['tokens_per_second']:,.0f}", f"{result['memory_gib']:.1f}", state,
        ])  # fmt: skip
    columns = ["run", "steps", "first loss", "last loss", "skipped", "tokens/s", "GiB", "passed"]
    return markdown_table(columns, rows)


def main() -> int:
    """Every run in its share of the time; 1 if one did not pass."""
    arguments = parse(Arguments)
    if arguments.run:
        output_file().write_text(json.dumps(train_here(arguments, arguments.run)))
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that what was started is ended too
    options = {field: value for field, value in vars(arguments).items() if field not in ("out", "run", "data")}
    path = arguments.out / f"train_learn-{device_slug()}.json"
    results: dict[str, dict[str, Any]] = {}
    for name, result in trainings(arguments):
        results[name] = result
        print(f"{name}: {verdict(result)}", flush=True)
        if "failure" in result:
            print(result["failure"], flush=True)
        write_result(path, {"options": options, "runs": results})
        path.with_suffix(".md").write_text(summary(results), encoding="utf-8")
    print(summary(results))
    return 1 if any(verdict(result) != "yes" for result in results.values()) else 0


def trainings(arguments: Arguments) -> Iterator[tuple[str, dict[str, Any]]]:
    """The run through launch.sh and then every variant, each in its share of the time; the next one imports ahead."""
    end = time.monotonic() + arguments.seconds
    variants = list(arguments.variants or variant_names())
    if arguments.launched:
        share = arguments.seconds / (len(variants) + 1)
        yield f"{arguments.launched}, launch.sh", launched(arguments, 2.5 * share)
    waiting: list[TrainingProcess] = []
    try:
        for number, variant in enumerate(variants):
            share = (end - time.monotonic()) / (len(variants) - number)
            if share < SHORTEST_TRAINING:
                yield variant, {"failure": "no time left"}
                continue
            process = waiting.pop() if waiting else prepared(arguments, variant, share - ENDING)
            if number + 1 < len(variants):
                waiting.append(prepared(arguments, variants[number + 1], share - ENDING))
            yield variant, process.result(share + 30)
    finally:
        for process in waiting:
            process.end()


def _finish(command: list[str], seconds: float) -> str:
    """Run a command; it is stopped, with its children, after so many seconds. Returns the end of its output."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(compiles=False), text=True
        )
        try:
            code: int | str = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = f"none: stopped after {seconds:.0f} s"
        finally:
            end_tree(process)
        output.seek(0)
        return f"{output.read()[-OUTPUT_SHOWN:]}\nexit code {code}"


if __name__ == "__main__":
    run(main)
