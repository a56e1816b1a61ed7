"""Plan a model before training it.

Parameter counts of every variant at a size:

    plan --size 500m

The same, and FLOPs and bytes of a layer and of the model, in training and in generation:

    plan --size 500m --pattern even --costs

Memory, communication and pipeline bubble of a job on so many GPUs, and the simplest topology that fits them:

    plan --size 1.7b --gpus 64 --gpu-memory 80 --tp 4 --pp 2

The fastest topologies on 64 to 4096 GPUs at several lengths, as a table and a picture:

    plan --size 7b --gpu h100 --sweep sweep.svg --sweep-lengths 2048 32768

The same job built and stepped, a rank of each kind, before it is queued; no GPU is needed:

    plan --size 1.7b --gpus 4096 --global-batch-size 4096 --tp 8 --pp 4 --dry-run
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from deconattn.cli import parse, show
from deconattn.config.flag_groups import DataFlags, EngineFlags, ModelFlags, OptimizationFlags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.pattern import STANDARD
from deconattn.config.presets import size_defaults
from deconattn.config.renamed import renamed_words
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.program import command
from deconattn.progress import progress_bar

if TYPE_CHECKING:
    from deconattn.cost.cluster import Cluster

PYTHIA_VOCABULARY = 50277


@dataclass(frozen=True)
class Arguments:
    """Parameter counts of every variant in a pattern; with --gpus, what a job costs on them."""

    gpus: int = 0
    """Plan a job on so many GPUs; 0 is parameter counts alone."""
    gpu: str = "h100"
    """GPU that the times are for: a100, h100, h200, b200, mi300x."""
    gpu_memory: float = 0.0
    """Memory of each GPU, in GiB; 0 is that of --gpu."""
    gpus_per_node: int = 8
    """GPUs of a machine; a tensor-parallel group stays in one."""
    network_gbps: float = 0.0
    """Gbit/s of each GPU's port to other machines; 0 is what --gpu usually comes with."""
    storage: float = 5.0
    """GB/s that the checkpoints' file system takes from all machines together."""
    sweep: Path | None = None
    """Tabulate the fastest topology that fits on each of --sweep-gpus at each of --sweep-lengths, and draw a picture of
    it here (.svg or .png). The global batch keeps its number of tokens."""
    sweep_gpus: tuple[int, ...] = (64, 256, 1024, 4096)
    """Numbers of GPUs for --sweep."""
    sweep_lengths: tuple[int, ...] = ()
    """Sequence lengths for --sweep; none is --seq-len."""
    measured: tuple[Path, ...] = ()
    """Run folders: the step times of their metrics.jsonl beside the prediction, which the first of them calibrates; a
    plan for its GPU then goes by it."""
    dry_run: bool = False
    """Build and step a rank of each kind of the job on --gpus, on no GPU: what it holds and sends, and what would be
    refused. --compile is left out."""
    costs: bool = False
    """Print what each variant costs too: FLOPs and bytes of a micro-batch in training and in generation."""
    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    optimization: OptimizationFlags = field(default_factory=OptimizationFlags)
    engine: EngineFlags = field(default_factory=EngineFlags)

    def training(self) -> TrainingFlags:
        """The flags of a training among these."""
        return dataclasses.replace(
            size_defaults(self.model.size),
            model=self.model,
            data=self.data,
            optimization=self.optimization,
            engine=self.engine,
        )

    def config(self, variant: str | None = None, length: int | None = None) -> ModelConfig:
        """The model that these flags describe, with another variant or for another length."""
        flags = dataclasses.replace(self.model, variant=variant or self.model.variant)
        vocabulary = 0 if flags.vocab_size else PYTHIA_VOCABULARY
        return model_config(flags, vocabulary, length or self.data.seq_len)


def main(words: Sequence[str]) -> None:
    """Read the flags, with the defaults of the size that they name, and print what they ask for."""
    program, words = command("plan"), renamed_words(words)
    size = parse(Arguments, words, program=program).model.size
    defaults = size_defaults(size)
    bf16 = EngineFlags(precision="bf16")  # as a training chooses where there are GPUs
    parts = {"model": defaults.model, "data": defaults.data, "optimization": defaults.optimization, "engine": bf16}
    flags = parse(Arguments, words, default=Arguments(**parts), program=program)  # type: ignore[arg-type]
    flags.training().check()
    if flags.sweep and flags.dry_run:
        raise UserError("--sweep is about many jobs and --dry-run about one: leave one out")
    if flags.measured:
        compare_measured(flags)
    if flags.sweep:
        sweep(flags, flags.sweep)
    elif flags.dry_run:
        rehearse(flags)
    elif flags.gpus:
        plan_job(flags)
    elif not flags.measured:
        count_variants(flags)
    if flags.costs:
        compare_costs(flags)


def plan_job(flags: Arguments) -> None:
    """Print what the job costs, and the topology that is recommended.

    Raises:
        UserError: figures below zero, a topology that cannot be, or nothing that fits.
    """
    from deconattn.cost.job import Job  # here and below: they bring PyTorch, for which --help does not wait
    from deconattn.cost.recommend import Recommendation, recommend
    from deconattn.cost.report import advice, per_rank, summary, timing

    cluster, memory = described(flags)
    training, model = flags.training(), flags.config(flags.model.variant)
    job = Job.of(model, training, flags.gpus, gpu_memory=memory)
    show(per_rank(job))
    for line in (*summary(job, memory), *timing(job, cluster, training)):
        print(line)
    found = recommend(model, training, flags.gpus, memory, cluster)
    alone: Recommendation | UserError | None = None
    if found[0].job.cp > 1:
        try:
            alone = recommend(model, training, flags.gpus, memory, cluster, count=1, sharing=False)[0]
        except UserError as error:
            alone = error
    for part in advice(found, cluster, memory, alone):
        if isinstance(part, str):
            print(part)
        else:
            show(part)


def sweep(flags: Arguments, picture: Path) -> None:
    """Print the fastest topologies on many numbers of GPUs and lengths, and draw them.

    Raises:
        UserError: no such format of pictures, no library to draw them, or figures that cannot be.
    """
    from deconattn.cost.sweep import sweep_table, swept
    from deconattn.extras import require

    if picture.suffix not in (".svg", ".png"):
        raise UserError(f"--sweep {picture}: give a name that ends in .svg or .png")
    require("plot", "drawing --sweep's picture")
    cluster, memory = described(flags)
    lengths = flags.sweep_lengths or (flags.data.seq_len,)
    if min((*flags.sweep_gpus, *lengths), default=0) < 1:
        raise UserError("--sweep-gpus and --sweep-lengths must be above zero")
    with progress_bar("planning", len(flags.sweep_gpus) * len(lengths), "jobs") as advance:
        cells = swept(
            flags.training(),
            lambda length: flags.config(length=length),
            flags.sweep_gpus,
            lengths,
            memory,
            cluster,
            advance,
        )
    show(sweep_table(cells, f"Size {flags.model.size}, {flags.model.variant}, on {cluster.name}: the fastest that fit"))
    from deconattn.analysis.sweep_picture import draw_sweep

    draw_sweep(cells, picture)
    print(f"picture: {picture}")


def compare_measured(flags: Arguments) -> None:
    """Print measured step times beside predicted ones.

    Raises:
        UserError: a folder that holds no run, or no times.
    """
    from deconattn.cost.measured import measured_table, read_measured

    runs = [read_measured(folder) for folder in flags.measured]
    cluster, _ = described(flags)
    show(measured_table(runs, cluster))
    if (flags.gpus or flags.sweep) and cluster.speed == 1:
        print(f"note: {runs[0].folder} ran on {runs[0].device}: the plan for --gpu {flags.gpu} does not go by it")


def described(flags: Arguments) -> tuple["Cluster", float]:
    """Return the cluster that flags describe, and the memory of its GPUs, GiB.

    Raises:
        UserError: figures that cannot be.
    """
    from deconattn.cost.cluster import Cluster

    if flags.gpus < 0 or flags.gpu_memory < 0:
        raise UserError(f"--gpus {flags.gpus} with --gpu-memory {flags.gpu_memory:g}: neither may be below zero")
    cluster = Cluster.of(flags.gpu, flags.gpus_per_node, flags.network_gbps or None, flags.storage)
    if flags.measured:
        from deconattn.cost.measured import as_fast_as, read_measured

        cluster = as_fast_as(cluster, read_measured(flags.measured[0]))
    return cluster, flags.gpu_memory or cluster.card.memory


def rehearse(flags: Arguments) -> None:
    """Dry-run the job, and print what its ranks hold and send beside the prediction.

    Raises:
        UserError: whatever the launcher would refuse too, or a rank that cannot take a step.
    """
    from deconattn.cost.job import Job
    from deconattn.dry_run.ranks import distinct_ranks, dry_run
    from deconattn.dry_run.report import memory_table, traffic_table, verdict
    from deconattn.launch.preflight import check_flags

    if flags.gpus < 1:
        raise UserError("--dry-run needs a job: give --gpus, how many it is to run on")
    _, memory = described(flags)
    training, model = flags.training(), flags.config(flags.model.variant)
    check_flags(training, flags.gpus)
    job = Job.of(model, training, flags.gpus, gpu_memory=memory)
    stands_for = distinct_ranks(job)
    with progress_bar("stepping", len(stands_for), "ranks") as advance:
        reports = dry_run(model, training, flags.gpus, memory, list(stands_for), advance)
    show(memory_table(job, reports, stands_for))
    show(traffic_table(job, reports))
    lines = list(verdict(job, reports, memory))
    if any(report.refusal for report in reports):
        raise UserError(f"the dry run found that the job cannot train: {lines[0]}")
    for line in lines:
        print(line)


def count_variants(flags: Arguments) -> None:
    """Print the parameter counts of all variants."""
    from deconattn.model.flops import count_parameters

    models = {variant: flags.config(variant) for variant in variants(flags)}
    counts = {variant: count_parameters(config) for variant, config in models.items()}
    vocabulary = models[STANDARD].vocab_size
    table = Table(title=f"Parameters, size {flags.model.size}, pattern {flags.model.pattern}, vocabulary {vocabulary}")
    for column in ("variant", "total", "non-embedding", "difference"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    standard = counts[STANDARD]
    for variant, count in counts.items():
        difference = count.total - standard.total
        share = f"{difference:+,} ({difference / standard.total:+.4%})" if difference else "0"
        table.add_row(variant, f"{count.total:,}", f"{count.non_embedding:,}", share)
    show(table)


def compare_costs(flags: Arguments) -> None:
    """Print what a layer's mixer and the model cost in every variant, on one GPU."""
    from deconattn.cost.job import Job
    from deconattn.cost.tables import cost_tables

    jobs = {
        variant: Job(
            model=flags.config(variant),
            length=flags.data.seq_len,
            micro_batch=flags.optimization.micro_batch_size,
            accumulation=1,
            bytes_per_element=2 if flags.engine.precision == "bf16" else 4,
            zero=flags.engine.zero_stage,
        )
        for variant in variants(flags)
    }
    for table in cost_tables(jobs, flags.model.pattern):
        show(table)


def variants(flags: Arguments) -> list[str]:
    """All variants, the standard one first and then the paper's others; last the one asked for, if it is by heads."""
    from deconattn.mixers import known_names

    known = sorted(known_names(), key=lambda variant: variant != STANDARD)
    return known if flags.model.variant in known else [*known, flags.model.variant]
