"""Report of a dry run for the terminal, beside what the cost model predicts."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job
from deconattn.cost.memory import stage_peak
from deconattn.cost.recommend import HEADROOM
from deconattn.dry_run.one_rank import RankReport

KINDS = {
    "tensor": "tensor parallelism",
    "context": "context parallelism",
    "data": "ZeRO",
    "pipeline": "to stages",
    "tied": "the tied head",
    "other": "flags and norms",
}


def memory_table(job: Job, reports: Sequence[RankReport], stands_for: Mapping[int, str]) -> Table:
    """Tabulate what each rank holds, GiB; refused ones are left out."""
    table = Table(title=f"Dry run, {len(reports)} of {job.ranks} ranks: GiB on each")
    for column in ("rank", "for", "parameters", "start-up", "between steps", "peak of a step", "predicted"):
        table.add_column(column, justify="left" if column == "for" else "right", no_wrap=column != "for")
    for report in reports:
        if report.refusal is None:
            predicted = stage_peak(job, report.coordinates[0]).memory.total
            figures = (report.built, report.between, report.peak, predicted)
            cells = [f"{size / 2**30:.2f}" for size in figures]
            table.add_row(str(report.rank), stands_for[report.rank], f"{report.parameters:,}", *cells)
    return table


def traffic_table(job: Job, reports: Sequence[RankReport]) -> Table:
    """Tabulate the collectives of a step of each rank, MiB that it sends."""
    table = Table(title="Collectives of a step: MiB sent, by ring algorithms")
    for column in ("rank", "for", "collective", "ranks", "calls", "sent", "predicted"):
        table.add_column(column, justify="left" if column in ("for", "collective") else "right", no_wrap=True)
    for report in reports:
        predicted = stage_traffic(job, report.coordinates[0])
        for kind, traffic in report.traffic.items():
            whole = getattr(predicted, kind, None)
            for index, one in enumerate(traffic):
                shown = "" if index or whole is None else f"{whole / 2**20:,.1f}"
                cells = (one.name, str(one.ranks), f"{one.calls:,}", f"{one.sent / 2**20:,.1f}", shown)
                table.add_row(str(report.rank), KINDS[kind], *cells)
        table.add_section()
    return table


def verdict(job: Job, reports: Sequence[RankReport], gpu_memory: float) -> Iterator[str]:
    """Say whether the job would train on GPUs of `gpu_memory` GiB, a line for each rank that would not."""
    refused = [report for report in reports if report.refusal is not None]
    for report in refused:
        yield f"refused on rank {report.rank}: {report.refusal}"
    if refused:
        return
    most = max(reports, key=lambda report: max(report.built, report.peak))
    peak = max(most.built, most.peak)
    fits = peak <= (1 - HEADROOM) * gpu_memory * 2**30
    yield (
        f"the dry run {'fits' if fits else 'does not fit'}: {peak / 2**30:.2f} of {gpu_memory:g} GiB at the peak "
        f"(rank {most.rank}), {HEADROOM:.0%} to be kept free"
    )
