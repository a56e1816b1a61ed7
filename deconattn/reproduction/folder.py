"""The folder of a reproduction, and which of its files say that something is done.

    OUT/
        plan.json                     what was asked for, and what each run costs
        runs/RUN/                     run folders of trainings
        results/RUN/KIND.json         a job that is done: what came of it
        results/RUN/KIND.failed.json  a job that failed
        results/RUN/KIND/             what the command wrote
        logs/RUN.KIND.log             what the command printed, attempt after attempt
        locks/                        who works on what
        report.html, report.md, data.json

Every JSON file appears whole, by a rename. One that cannot be read counts as missing, and is made again.

Work is divided by locks of the kernel (flock), one process a job, on this machine and on others that share the folder.
A lock lasts as long as any process that holds its file open: the one that took it, and the command that it started,
which inherits it. So a lock never outlives the work, and a command that outlives its parent keeps others away until it
has ended. Where a shared file system does not pass flock on between machines, --shard keeps them apart instead.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deconattn import durable, locks
from deconattn.errors import UserError
from deconattn.reproduction.estimate import Estimate
from deconattn.reproduction.plans import PlannedJob, ReproductionPlan, Request, Run, make_plan

FORMAT = 1


@dataclass(frozen=True)
class ReproductionFolder:
    """The places in the folder `out`."""

    out: Path

    @cached_property
    def plan(self) -> Path:
        return self.out / "plan.json"

    def run(self, run: Run) -> Path:
        return self.out / "runs" / run.name

    def output(self, job: PlannedJob) -> Path:
        """The folder that a job's command writes; of a training the run folder."""
        return self.run(job.run) if job.kind == "train" else self.out / "results" / job.run.name / job.kind

    def log(self, job: PlannedJob) -> Path:
        return self.out / "logs" / f"{job.run.name}.{job.kind}.log"

    def lock(self, job: PlannedJob) -> Path:
        return self.out / "locks" / f"{job.run.name}.{job.kind}"

    @property
    def common_lock(self) -> Path:
        """Lock of the files that any process may write: the plan and the report."""
        return self.out / "locks" / "report"

    def rate(self, run: Run) -> float | None:
        """The peak learning rate that a run has from its sweep's choice; None where there is none, or not yet."""
        chosen = self.result(PlannedJob(run.first, "choose")) if run.swept else None
        return None if chosen is None else float(chosen["outcome"]["lr"])

    def trained(self, run: Run) -> Run | None:
        """The run whose training is this one's: itself, or the trial that its sweep chose; None before that."""
        if not run.swept or run.first_seed is not None:
            return run
        return None if (lr := self.rate(run)) is None else run.at(lr)

    def needs(self, job: PlannedJob) -> PlannedJob | None:
        """The job that must be done before this one; None where none must, or where several trials must have ended."""
        if job.kind == "choose" or (job.kind == "train" and not job.run.swept):
            return None
        trained = None if job.kind == "train" else self.trained(job.run)
        return PlannedJob(job.run.first, "choose") if trained is None else PlannedJob(trained, "train")

    def possible(self, job: PlannedJob) -> bool:
        """Tell whether nothing that the job needs has failed."""
        needed = self.needs(job)
        return needed is None or (self.failure(needed) is None and self.possible(needed))

    def settled(self, job: PlannedJob) -> bool:
        return self.result(job) is not None or self.failure(job) is not None

    def result(self, job: PlannedJob) -> dict[str, Any] | None:
        """Recorded result of a job; None unless it is done."""
        return _read(self._done(job))

    def failure(self, job: PlannedJob) -> dict[str, Any] | None:
        """Recorded failure of a job; None if it did not fail."""
        return None if self.result(job) is not None else _read(self._failed(job))

    def record(self, job: PlannedJob, content: dict[str, Any]) -> None:
        """Record that the job is done."""
        _write(self._done(job), content)
        self._failed(job).unlink(missing_ok=True)

    def record_failure(self, job: PlannedJob, content: dict[str, Any]) -> None:
        """Record that the job failed."""
        _write(self._failed(job), content)

    def forget_failure(self, job: PlannedJob) -> None:
        self._failed(job).unlink(missing_ok=True)

    def _done(self, job: PlannedJob) -> Path:
        return self.out / "results" / job.run.name / f"{job.kind}.json"

    def _failed(self, job: PlannedJob) -> Path:
        return self.out / "results" / job.run.name / f"{job.kind}.failed.json"


@dataclass(frozen=True)
class Stored:
    """A plan as it stands in its folder, with what each run costs by name."""

    request: Request
    estimates: dict[str, Estimate]

    @cached_property
    def plan(self) -> ReproductionPlan:
        return make_plan(self.request)

    def trials(self, run: Run) -> list[PlannedJob]:
        """The trainings that the sweep of a model chooses from."""
        return [PlannedJob(run.first.at(lr), "train") for lr in self.request.lr_sweep]


def save_plan(folder: ReproductionFolder, stored: Stored) -> None:
    """Begin the folder with its `plan.json`, or add seeds to it."""
    request = TypeAdapter(Request).dump_python(stored.request, mode="json")
    estimates = {name: dataclasses.asdict(estimate) for name, estimate in stored.estimates.items()}
    try:
        with locks.hold_lock(folder.common_lock, wait=True):
            if (there := load_plan(folder)) is not None:  # perhaps another process has just begun it
                check_same(folder, there.request, stored.request)
            _write(folder.plan, {"format": FORMAT, "request": request, "estimates": estimates})
    except OSError as error:
        raise UserError(f"--out {folder.out}: {error.strerror}; give a folder that can be written") from error


def with_seeds(stored: Stored, seeds: int) -> Stored:
    """Return a plan with more seeds, whose runs cost what those of the first do."""
    request = dataclasses.replace(stored.request, seeds=seeds)
    runs = make_plan(request).runs
    costs = {run.name: stored.estimates[run.first.name] for run in runs}
    return Stored(request, stored.estimates | costs)


def load_plan(folder: ReproductionFolder) -> Stored | None:
    """The plan that the folder was begun with; None where there is none that can be read.

    Raises:
        UserError: a later version of this program wrote it.
    """
    content = _read(folder.plan)
    if content is None:
        return None
    if content.get("format") != FORMAT:
        raise UserError(f"{folder.plan} has format {content.get('format')}, not {FORMAT}: give another --out")
    try:
        request = TypeAdapter(Request).validate_python(_as_now(content["request"]))
        estimates = TypeAdapter(dict[str, Estimate]).validate_python(content["estimates"])
    except (KeyError, ValidationError):
        return None
    return Stored(request, estimates)


def _as_now(request: Any) -> Any:
    """A request as it was stored when there was one number of tokens, as it is stored now."""
    if isinstance(request, dict) and not isinstance(request.get("tokens", []), list):
        return request | {"tokens": [] if request["tokens"] is None else [request["tokens"]]}
    return request


def check_same(folder: ReproductionFolder, stored: Request, given: Request) -> None:
    """Raises UserError for the first flag that is not what the folder was begun with; more seeds may be given."""
    stored = dataclasses.replace(stored, seeds=max(stored.seeds, given.seeds))
    for field in dataclasses.fields(Request):
        before, now = getattr(stored, field.name), getattr(given, field.name)
        if before != now:
            flag = "--" + field.name.replace("_", "-")
            raise UserError(
                f"{folder.out} was begun with {flag} {_shown(before)} and the flags now say {_shown(now)}: give "
                "the flags that it was begun with, or another --out"
            )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value) or "(its default)"
    return "(its default)" if value in (None, "") else str(value)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_json(path, content)
