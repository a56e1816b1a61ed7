"""Plan a model before training it.

Parameter counts of every variant at a size:

    python tools/plan.py --size 500m

Memory, communication and pipeline bubble of a job on so many GPUs, and the simplest topology that fits them:

    python tools/plan.py --size 1.7b --gpus 64 --gpu-memory 80 --tp 4 --pp 2
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import parse, run
from deconattn.config import (
    DataFlags,
    EngineFlags,
    ModelFlags,
    OptimizationFlags,
    TrainingFlags,
    model_config,
    size_defaults,
)
from deconattn.cost.job import Job
from deconattn.cost.parameters import count_parameters
from deconattn.cost.recommend import recommend
from deconattn.cost.report import advice, per_rank, summary
from deconattn.errors import UserError
from deconattn.mixers import variant_names
from deconattn.mixers.plugins import load_plugins
from deconattn.pattern import STANDARD

PYTHIA_VOCABULARY = 50277


@dataclass(frozen=True)
class Plan:
    """Parameter counts of every variant in a pattern; with --gpus, what a job costs on them."""

    gpus: int = 0
    """Plan a job on so many GPUs; 0 is parameter counts alone."""
    gpu_memory: float = 80.0
    """Of each, GiB."""
    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    optimization: OptimizationFlags = field(default_factory=OptimizationFlags)
    engine: EngineFlags = field(default_factory=EngineFlags)

    def training(self) -> TrainingFlags:
        """The flags of launch.sh among these."""
        return dataclasses.replace(
            size_defaults(self.model.size),
            model=self.model,
            data=self.data,
            optimization=self.optimization,
            engine=self.engine,
        )


def main() -> None:
    size = parse(Plan).model.size
    defaults = size_defaults(size)
    bf16 = EngineFlags(precision="bf16")  # as launch.sh chooses where there are GPUs
    parts = {"model": defaults.model, "data": defaults.data, "optimization": defaults.optimization, "engine": bf16}
    flags = parse(Plan, default=Plan(**parts))  # type: ignore[arg-type]
    load_plugins(flags.model.plugin)
    if flags.gpus:
        plan_job(flags)
    else:
        count_variants(flags.model)


def plan_job(flags: Plan) -> None:
    """Print what the job costs, and the topology that is recommended.

    Raises:
        UserError: flags that do not go together, or nothing that fits.
    """
    if flags.gpus < 0 or flags.gpu_memory <= 0:
        raise UserError(f"--gpus {flags.gpus} with --gpu-memory {flags.gpu_memory:g}: both must be above zero")
    training = flags.training()
    training.check()
    model = model_config(flags.model, PYTHIA_VOCABULARY if not flags.model.vocab_size else 0, flags.data.seq_len)
    console = Console()
    job = Job.of(model, training, flags.gpus)
    table = per_rank(job)
    natural = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.width = max(console.width, natural)  # numbers are not to be cut off
    console.print(table)
    for line in summary(job, flags.gpu_memory):
        print(line)
    for line in advice(recommend(model, training, flags.gpus, flags.gpu_memory)):
        print(line)


def count_variants(flags: ModelFlags) -> None:
    """Print the parameter counts of all variants."""
    counts = {}
    for variant in variant_names():
        config = model_config(dataclasses.replace(flags, variant=variant), PYTHIA_VOCABULARY, 2048)
        counts[variant] = count_parameters(config)
    table = Table(title=f"Parameters, size {flags.size}, pattern {flags.pattern}, vocabulary {config.vocab_size}")
    for column in ("variant", "total", "non-embedding", "difference"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    standard = counts[STANDARD]
    for variant, count in sorted(counts.items(), key=lambda item: item[0] != STANDARD):
        difference = count.total - standard.total
        share = f"{difference:+,} ({difference / standard.total:+.4%})" if difference else "0"
        table.add_row(variant, f"{count.total:,}", f"{count.non_embedding:,}", share)
    Console().print(table)


if __name__ == "__main__":
    run(main)
