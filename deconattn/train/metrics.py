"""Metrics of a run while it trains: `metrics.jsonl`, a progress line, Weights & Biases, TensorBoard."""

import json
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deconattn import durable
from deconattn.config.flag_groups import RunFlags
from deconattn.errors import UserError
from deconattn.metric_rows import METRICS, kind_of, valid_lines
from deconattn.progress import error_console

TENSORBOARD = "tensorboard"
"""TensorBoard's folder in the run's."""
SECONDS_BETWEEN_LINES = 10.0


class MetricsFile:
    """Writer of `metrics.jsonl`: one JSON object a step, a validation or the scores of a step; never two of a kind.

    Args:
        resumed_step: rows of later steps, which a killed run wrote after its last checkpoint, are dropped.

    Raises:
        UserError: it cannot be read or written; :meth:`write` and :meth:`sync` too.
    """

    def __init__(self, run: Path, resumed_step: int) -> None:
        self._path = run / METRICS
        self._last: dict[str, dict[str, Any]] = {}
        with writing(self._path):
            if self._path.exists():
                kept = []
                for line, row in valid_lines(self._path.read_text(encoding="utf-8", errors="replace")):
                    if row["step"] <= resumed_step:
                        kept.append(line)
                        self._last[kind_of(row)] = row
                durable.write_text(self._path, "".join(kept))
            # Without a buffer, closing has nothing left to write that a full disk could refuse.
            self._file = self._path.open("ab", buffering=0)

    def last(self, kind: str, step: int) -> dict[str, Any] | None:
        """The row of a kind (`step`, `validation` or `scores`) if the file's last of that kind is of this step."""
        row = self._last.get(kind)
        return row if row is not None and row["step"] == step else None

    def write(self, row: dict[str, Any]) -> None:
        content = (json.dumps({key: _json_value(value) for key, value in row.items()}) + "\n").encode()
        with writing(self._path):
            while content:  # a disk that is nearly full takes a part
                content = content[self._file.write(content) :]
        self._last[kind_of(row)] = row

    def sync(self) -> None:
        """Flush to the disk what was written."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): free space or check permissions, then --resume"
        ) from error


class Display:
    """Progress display: a live line in a terminal; in a log, a line now and then."""

    def __init__(self, total_steps: int, step: int) -> None:
        self._console = error_console()
        self._last_line = 0.0
        self._total = total_steps
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=step)
        self._progress.start()

    def step(self, row: dict[str, Any]) -> None:
        text = _summary(row)
        self._progress.update(self._task, completed=row["step"], description=text)
        now = time.monotonic()
        last = row["step"] == self._total
        if not self._console.is_terminal and (last or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            self.say(f"step {row['step']}/{self._total}  {text}")

    def doing(self, what: str) -> None:
        """Have the live line tell what training stands still for, until the next step."""
        self._progress.update(self._task, description=what)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class Tracker(Protocol):
    """Somebody else's record of a run."""

    def log(self, row: dict[str, Any]) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class WandbRun:
    """Weights & Biases run that a resumed training continues; offline where there is no key."""

    def __init__(self, project: str, run: Path, config: dict[str, Any], resumed: bool) -> None:
        import wandb

        mode: Literal["offline"] | None = (
            None if os.environ.get("WANDB_MODE") or wandb.login(prompt=False) else "offline"
        )
        identity = run / "wandb-id"
        if not (resumed and identity.is_file()):
            durable.write_text(identity, secrets.token_hex(4))
        self._run = wandb.init(
            project=project, dir=run, config=config, id=identity.read_text(), resume="allow", name=run.name, mode=mode
        )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def sync(self) -> None:
        """Do nothing: a process of wandb's own has the rows."""

    def close(self) -> None:
        self._run.finish()


class TensorBoardRun:
    """TensorBoard's record of a run, under the names of `metrics.jsonl`; a resumed training goes on in its curves.

    Args:
        resumed_step: what an earlier training told of later steps is hidden.

    Raises:
        UserError: it cannot be written; the methods too.
    """

    def __init__(self, run: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / TENSORBOARD
        with writing(self._path):
            self._writer = SummaryWriter(str(self._path), purge_step=resumed_step + 1)

    def log(self, row: dict[str, Any]) -> None:
        with writing(self._path):
            for name, value in row.items():
                if isinstance(value, str):
                    self._writer.add_text(name, value, row["step"])
                elif name != "step":
                    self._writer.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Hand over what is held back."""
        with writing(self._path):
            self._writer.flush()

    def close(self) -> None:
        with writing(self._path):
            self._writer.close()


class Metrics:
    """All outputs of metrics; made on rank 0 only."""

    def __init__(self, run: Path, config: dict[str, Any], flags: RunFlags, total_steps: int, resumed_step: int) -> None:
        self._file = MetricsFile(run, resumed_step)
        self._trackers: list[Tracker] = []
        if flags.wandb_project:
            self._trackers.append(WandbRun(flags.wandb_project, run, config, resumed_step > 0))
        if flags.tensorboard:
            self._trackers.append(TensorBoardRun(run, resumed_step))
        self.display = Display(total_steps, resumed_step)

    def step(self, row: dict[str, Any]) -> None:
        """Write a training step's row."""
        self._write(row)
        self.display.step(row)

    def validation(self, step: int, loss: float) -> None:
        """Write a validation's row: `step` and `val_loss`, nats."""
        self._write({"step": step, "val_loss": loss}, durable=True)
        self.display.say(f"step {step}: validation loss {loss:.4f}")

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Write a row of benchmarks: `step`, and each figure under `eval/TITLE`."""
        self._write({"step": step} | {f"eval/{title}": value for title, value in scores.items()}, durable=True)
        shown = (f"{title} {value:.4g}" for title, value in scores.items() if not title.endswith("stderr"))
        self.display.say(f"step {step}: {', '.join(shown)}")

    def save_failed(self, step: int, reason: str) -> None:
        """Write a row of a step that has no checkpoint: `step` and `save_failed`, the reason."""
        self._write({"step": step, "save_failed": reason})

    def told(self, step: int) -> tuple[float | None, bool]:
        """What is on file of a step: its validation loss, nats, and whether there are scores."""
        validation = self._file.last("validation", step)
        loss = None if validation is None else float(validation["val_loss"])
        return loss, self._file.last("scores", step) is not None

    def sync(self) -> None:
        """Have all rows on the disk: before a checkpoint that later steps go on from."""
        self._file.sync()
        for tracker in self._trackers:
            tracker.sync()

    def close(self) -> None:
        self.display.close()
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _write(self, row: dict[str, Any], durable: bool = False) -> None:
        self._file.write(row)
        if durable:
            self._file.sync()
        for tracker in self._trackers:
            tracker.log(row)


def _json_value(value: Any) -> Any:
    """Return a value that JSON can hold: infinities and NaN become strings."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _summary(row: dict[str, Any]) -> str:
    parts = [f"loss {row['loss']:.4f}", f"grad norm {row['grad_norm']:.3f}", f"lr {row['learning_rate']:.2e}"]
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    parts.append(f"{row['memory_gib']:.1f} GiB")
    return "  ".join(parts)


def memory_gib() -> float:
    """Return peak allocated GPU memory, or the resident set on a CPU, GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30
