"""Training steps of many micro-batches with a fixed stream: held over the step, and as a row of each micro-batch.

    OMP_NUM_THREADS=1 python benchmarks/training/fixed_stream.py

`standard`, and each variant with a fixed stream both ways by one engine, take turns step by step in one process, so
that whatever else the machine does falls on all alike. Both ways see the same tokens; their first losses must agree.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, write_result
from deconattn.cli import parse, run
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.data import Batch
from deconattn.model.causal_lm import CausalLM
from deconattn.model.flops import step_flops
from deconattn.model.init import initialize
from deconattn.parallel.process_group import start_distributed
from deconattn.train.engine import Engine

LEARNING_RATE = 1e-4
VARIANTS = ("standard", "fixedseq", "rndemb")


@dataclass(frozen=True)
class Arguments:
    """Training steps of many micro-batches, the fixed stream held over the step and not."""

    hidden_size: int = 512
    """Width; heads are of 64."""
    layers: int = 8
    """Depth."""
    seq_len: int = 512
    """Tokens in a sequence."""
    micro_batch_size: int = 1
    """Sequences in a micro-batch."""
    micro_batches: int = 8
    """In a step."""
    vocab_size: int = 4096
    """Rows of the embedding."""
    repeats: int = 3
    """Measured steps of each, after one to warm up."""
    out: Path = RESULTS
    """Folder of the JSON."""

    @property
    def words(self) -> list[str]:
        words = (
            f"--hidden-size {self.hidden_size} --num-attention-heads {self.hidden_size // 64} "
            f"--num-hidden-layers {self.layers} --seq-len {self.seq_len} --vocab-size {self.vocab_size} "
            f"--micro-batch-size {self.micro_batch_size} --precision fp32 "
            f"--global-batch-size {self.micro_batch_size * self.micro_batches} --lr {LEARNING_RATE}"
        )
        return words.split()


def steps(arguments: Arguments, variant: str, held: bool) -> tuple[Callable[[int], float], float]:
    """Return what trains a step, by its number, and gives its loss; and the FLOPs that the step spends."""
    flags = parse_training_flags([*arguments.words, "--variant", variant])
    config = model_config(flags.model, arguments.vocab_size, arguments.seq_len)
    model = CausalLM(config)
    initialize(model, 0, torch.arange(arguments.seq_len) % arguments.vocab_size)
    engine = Engine(model, flags)
    if not held:
        engine.streams.reason = "to be measured"

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        shape = arguments.micro_batches, arguments.micro_batch_size, arguments.seq_len + 1
        tokens = torch.randint(arguments.vocab_size, shape, generator=generator)
        return engine.train_step([Batch(one[:, :-1], one[:, 1:]) for one in tokens], LEARNING_RATE).loss

    rows, length = arguments.micro_batch_size, arguments.seq_len
    return step, step_flops(config, rows, length, arguments.micro_batches, held)


def main() -> None:
    arguments = parse(Arguments)
    start_distributed()
    contestants = {"standard": steps(arguments, "standard", True)}
    for variant in VARIANTS[1:]:
        contestants[f"{variant}, a row of each"] = steps(arguments, variant, False)
        contestants[f"{variant}, held"] = steps(arguments, variant, True)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(arguments.repeats + 1):
        for name, (step, _) in contestants.items():
            start = time.process_time()
            losses[name].append(step(number))
            if number:
                seconds[name].append(time.process_time() - start)
    for variant in VARIANTS[1:]:
        held, apart = losses[f"{variant}, held"][0], losses[f"{variant}, a row of each"][0]
        assert abs(held - apart) < 1e-6 * apart, (variant, held, apart)
    table = Table("contestant", "CPU s a step", "over standard", "FLOPs over standard")
    results, flops = [], contestants["standard"][1]
    for name, (_, spent) in contestants.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["standard"], strict=True))
        table.add_row(name, f"{statistics.median(seconds[name]):.2f}", f"{ratio:.2f}", f"{spent / flops:.2f}")
        results.append(
            {
                "contestant": name,
                "cpu_seconds": seconds[name],
                "ratio": ratio,
                "flops_ratio": spent / flops,
                "losses": losses[name],
            }
        )
    Console().print(table)
    options = {name: value for name, value in asdict(arguments).items() if name != "out"}
    write_result(arguments.out / "fixed_stream-cpu.json", {"options": options, "results": results})


if __name__ == "__main__":
    run(main)
