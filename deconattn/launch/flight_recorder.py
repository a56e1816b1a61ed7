"""PyTorch's flight recorder: the last collectives of each rank, on the disk when one of them timed out.

Where ranks wait for one that does not come, the file of the late one ends before theirs. NCCL's watchdog writes its own
(pickles, which `python -m torch.distributed.flight_recorder.fr_trace` reads); for gloo ours are JSON.
"""

import json
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d

RECORDER = "flight-recorder"
VARIABLES = (
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
    ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
)
"""PyTorch's own variables, their older names and our defaults: collectives kept a rank; NCCL's are written."""
PLACE, OLD_PLACE = "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"


def record_collectives(environment: MutableMapping[str, str]) -> None:
    """Have PyTorch record, before there is a process group; what is set already, by either name, stays."""
    for name, old, value in VARIABLES:
        if old not in environment:
            environment.setdefault(name, value)


class FlightRecorder:
    """What this rank's recorder leaves in a run folder, apart from what earlier trainings of the run have left.

    Args:
        step: that this training begins at.

    Attributes:
        told: of :func:`records_since_now`.
    """

    def __init__(self, run: Path, step: int, rank: int, environment: MutableMapping[str, str]) -> None:
        self._folder, self._rank = run / RECORDER / f"from-step-{step}", rank
        self.told = records_since_now(self._folder)
        if torch.cuda.is_available():  # NCCL's watchdog asks nobody, and makes no folder
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
            if OLD_PLACE not in environment:
                environment.setdefault(PLACE, str(self._folder / "rank-"))

    def write(self) -> None:
        """Write what gloo's groups have done; NCCL has written its own by now."""
        with suppress(OSError, RuntimeError):
            if entries := _entries():
                self._folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"rank": self._rank, "entries": entries}, indent=0)
                (self._folder / f"rank-{self._rank}.json").write_text(text, encoding="utf-8")


def records_since_now(folder: Path) -> Callable[[], str]:
    """Return a function that tells, as a clause of a line, whether a folder has records newer than any there is now."""
    before = _newest(folder)
    return lambda: f"; the last collectives of each rank: {folder}" if _newest(folder) > before else ""


def last_collective() -> str:
    """Return the collective that this rank entered last, as a clause of a line; empty where none is on record."""
    with suppress(RuntimeError, LookupError, ValueError):
        entry = _entries()[-1]
        tensors = ", ".join(
            f"{kind.lower()}{size}" for kind, size in zip(entry["input_dtypes"], entry["input_sizes"], strict=True)
        )
        return f", in {entry['profiling_name']}" + (f" of {tensors}" if tensors else "")
    return ""


def _entries() -> list[dict[str, Any]]:
    """Return the record, oldest first."""
    if torch.cuda.is_available():
        return []
    found: list[dict[str, Any]] = json.loads(c10d._dump_fr_trace_json()).get("entries", [])  # type: ignore[attr-defined]
    return sorted(found, key=lambda entry: entry["record_id"])


def _newest(folder: Path) -> float:
    """When the folder's newest file was written; 0 without any."""
    with suppress(OSError):
        return max((path.stat().st_mtime for path in folder.rglob("rank-*")), default=0.0)
    return 0.0
