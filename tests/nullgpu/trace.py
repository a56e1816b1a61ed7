"""Trainings on the null GPU, and what the host asked of the device in one step of each.

    python -m tests.nullgpu.trace ANSWER TRAININGS    # both JSON files; under the environment of :func:`.build.build`

A training is the words of a command line; its answer is :class:`Found` as an object.
"""

import ctypes
import dataclasses
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRACED = 4
"""The step that is told of: by then nothing is new to DeepSpeed or the allocator."""


@dataclass(frozen=True)
class Found:
    """What one step asked of the device.

    Attributes:
        waits_a_micro_batch: times that the host waited, up to the end of the last backward pass, a micro-batch.
        waits_a_step: times that it waited after that.
        places: where it waited, and how often there.
        launches: kernels launched in the step, products among them.
        reductions: of more than 256 KiB, by the size of their elements: `fp32`, `16-bit`.
        peak_gib: largest memory that PyTorch held up to there, GiB.
    """

    waits_a_micro_batch: float
    waits_a_step: int
    places: dict[str, int]
    launches: int
    reductions: dict[str, int]
    peak_gib: float


class Counts:
    """The null GPU's counters, and the places that its waits were asked for at."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["NULLGPU"])
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._waited)
        self._library.nullgpu_callback(self._callback)
        self.places: Counter[str] = Counter()

    @contextmanager
    def reading_zeros(self) -> Iterator[None]:
        """Let the host read zeros of the device, in place of garbage."""
        self._library.nullgpu_zeros(1)
        yield
        self._library.nullgpu_zeros(0)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count from zero, and note places."""
        self._library.nullgpu_reset()
        self.places.clear()
        self._library.nullgpu_trace(1)
        yield
        self._library.nullgpu_trace(0)

    def now(self) -> dict[str, int]:
        """Return what was called since, by name."""
        text = ctypes.create_string_buffer(1 << 16)
        self._library.nullgpu_dump(text, len(text))
        pairs = (line.rsplit(" ", 1) for line in text.value.decode().splitlines())
        return {name: int(count) for name, count in pairs}

    def waits(self) -> int:
        return sum(count for name, count in self.now().items() if name.endswith("Synchronize"))

    def _waited(self, kind: bytes) -> None:
        if not kind.endswith(b"Synchronize"):
            return
        names = [f for f in traceback.extract_stack() if "/deconattn/" in f.filename or "/deepspeed/" in f.filename]
        last = names[-1] if names else None
        where = f"{last.filename.split('site-packages/')[-1].split('/deconattn/')[-1]}:{last.lineno}" if last else "?"
        self.places[f"{kind.decode()} {where}"] += 1


def trace(words: list[str], counts: Counts) -> Found:
    """Train by the flags `words`, which ask for at least four steps, and return what the fourth asked of the device."""
    import torch

    from deconattn.train.engine import Engine
    from tests.train.jobs import run_job

    plain, causality, found = Engine.train_step, Engine.check_causality, []

    def train_step(self: Engine, micro_batches: Iterable[Any], *arguments: Any, **options: Any) -> Any:
        batches = list(micro_batches)
        train_step.step += 1
        if train_step.step != TRACED:
            with counts.reading_zeros():
                return plain(self, batches, *arguments, **options)
        inner, before_update = self._engine.step, []

        def step(*given: Any) -> None:
            before_update.append(counts.waits())
            inner(*given)

        self._engine.step = step
        with counts.reading_zeros(), counts.counting():
            result = plain(self, batches, *arguments, **options)
            calls, waits = counts.now(), counts.waits()
        del self._engine.step
        found.append(
            Found(
                waits_a_micro_batch=before_update[-1] / len(batches),
                waits_a_step=waits - before_update[-1],
                places=dict(counts.places.most_common()),
                launches=sum(count for name, count in calls.items() if name.startswith("LAUNCH")),
                reductions={n.split()[-1]: count for n, count in calls.items() if n.startswith("NCCL big reduction")},
                peak_gib=torch.cuda.max_memory_allocated() / 2**30,
            )
        )
        return result

    train_step.step = 0
    torch.cuda.reset_peak_memory_stats()
    Engine.train_step = train_step
    Engine.check_causality = lambda *_: None  # values are garbage
    try:
        trainer = run_job(words)
        trainer.engine.destroy()
    finally:
        Engine.train_step, Engine.check_causality = plain, causality
    return found[0]


def main(answer: Path, trainings: Path) -> None:
    counts = Counts()
    import torch

    torch.Tensor.__repr__ = lambda self, **_: "tensor"  # DeepSpeed prints some, which counts the finite values in them
    from deconattn.parallel.process_group import start_distributed

    start_distributed()
    found = []
    for words in json.loads(trainings.read_text()):
        found.append(dataclasses.asdict(trace(words, counts)))
        answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
