"""Measured step times of runs beside predicted ones; the first run tells how fast the machine is.

CPU ranks share their machine's cores, so what one rank computes in a second, n ranks compute together: a rank has an
n-th of it, or, where ranks are more than cores, what those that wait leave to it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from rich.table import Table

from deconattn.config.flags import TrainingFlags
from deconattn.config.run_config import RUN_CONFIG, read_run_config
from deconattn.cost.cards import Card
from deconattn.cost.cluster import Cluster
from deconattn.cost.compute import stage_compute
from deconattn.cost.hardware import peak_flops
from deconattn.cost.job import Job
from deconattn.cost.step_time import step_time
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.layers.config import ModelConfig
from deconattn.metric_rows import METRICS, read_rows

CPU = Card(1e11, 1e11, 2e10, 0, 0.8, dict.fromkeys((64, 128), (0.5, 0.35)))
"""A CPU in round figures; how fast it is, the first run tells. Attention's part of it is between those that have the
variants of benchmarks/results/train_cpu-70m-fp32.json take the time that they took."""
LOOPBACK = 1e9
"""Bytes/s that gloo sends between processes of a machine (assumed)."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run and the seconds of its steps, the median.

    Attributes:
        device: as the run has it in its configuration.
    """

    folder: Path
    flags: TrainingFlags
    model: ModelConfig
    ranks: int
    device: str
    seconds: float

    @property
    def on_gpus(self) -> bool:
        return peak_flops(self.device) is not None

    @property
    def job(self) -> Job:
        return Job.of(self.model, self.flags, self.ranks, gpu=self.on_gpus)


def read_measured(folder: Path) -> MeasuredRun:
    """Read a run folder.

    Raises:
        UserError: no run, or none with the time of a step.
    """
    try:
        config = read_run_config(folder, "give another run to --measured")
        rows = read_rows(folder / METRICS)
    except OSError as error:
        raise UserError(
            f"--measured {folder} holds no run ({reason(error)}): give a folder with {RUN_CONFIG} and {METRICS}"
        ) from None
    rates = [rate for row in rows if (rate := row.get("tokens_per_second"))]
    if not rates:
        raise UserError(f"--measured {folder}: its {METRICS} has no tokens_per_second: let it run for a few steps")
    tokens = config.flags.optimization.global_batch_size * config.flags.data.seq_len
    environment = config.environment
    ranks = int(environment.get("world_size", "1"))
    return MeasuredRun(folder, config.flags, config.model, ranks, environment.get("device", ""), tokens / median(rates))


def as_fast_as(cluster: Cluster, run: MeasuredRun) -> Cluster:
    """Return the cluster with GPUs as fast as the run's, where it ran on such."""
    if cluster.name.lower() not in run.device.lower():
        return cluster
    return replace(cluster, speed=_speed(run, cluster))


def predicted_seconds(run: MeasuredRun, first: MeasuredRun, cluster: Cluster) -> float:
    """Return the step time of a run on a machine that is as fast as in `first`.

    Args:
        cluster: of the GPUs, where the runs used some.
    """
    if run.on_gpus:
        return step_time(run.job, as_fast_as(cluster, first)).total
    whole = _speed(first, _cpus(first)) * first.ranks  # of the machine, over its rank's
    cores, job = len(os.sched_getaffinity(0)), run.job
    at_best = step_time(job, replace(_cpus(run), speed=whole / min(run.ranks, cores))).total
    shared = replace(_cpus(run), speed=whole / run.ranks)
    stages = [stage_compute(job, shared, stage) for stage in range(job.pp)]
    never_waiting = (
        sum(job.accumulation * (one.forward + one.backward) + one.streams + one.update for one in stages) / job.pp
    )
    return max(at_best, never_waiting)


def _speed(run: MeasuredRun, cluster: Cluster) -> float:
    return step_time(run.job, cluster).total / run.seconds


def _cpus(run: MeasuredRun) -> Cluster:
    return Cluster("CPU", CPU, run.ranks, LOOPBACK, LOOPBACK, LOOPBACK)


def measured_table(runs: Sequence[MeasuredRun], cluster: Cluster) -> Table:
    """Tabulate runs, the first of which tells how fast the machine is."""
    table = Table(title="Seconds of a step, measured and predicted")
    for column in ("run", "ranks", "topology", "measured", "predicted", "ratio"):
        table.add_column(column, justify="left" if column in ("run", "topology") else "right")
    for run in runs:
        job, found = run.job, predicted_seconds(run, runs[0], cluster)
        topology = f"{job.shape}, ZeRO {job.zero}, {job.accumulation} x {job.micro_batch}"
        told = "it calibrates" if run is runs[0] else f"{found / run.seconds:.2f}"
        table.add_row(str(run.folder), str(run.ranks), topology, f"{run.seconds:.3g}", f"{found:.3g}", told)
    return table
