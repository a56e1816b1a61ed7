"""Trainings on the null GPU, and what the host asked of the device in one step of each.

    python -m tests.nullgpu.trace ANSWER TRAININGS    # both JSON files; under the environment of :func:`.build.build`

A training is the words of a command line; its answer is :class:`Found` as an object. Every rank of a training is such
a process, and writes an answer of its own.
"""

import dataclasses
import gc
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.nullgpu.counts import Counts

TRACED = 4
"""The step that is told of: by then nothing is new to DeepSpeed or the allocator."""
TOLD = ("warning:", "note:", "Warning:", "cannot", "recompile_limit", "fall")
"""What lines of standard error are kept by."""


@dataclass(frozen=True)
class Found:
    """What one step asked of the device.

    Attributes:
        waits_a_micro_batch: times that the host waited, up to the end of the last backward pass, a micro-batch.
        waits_a_step: times that it waited after that.
        places: where it waited, and how often there.
        launches: kernels launched in the step, products among them, by :func:`.counts.kind_of`.
        reductions: of more than 256 KiB, by the size of their elements: `fp32`, `16-bit`.
        peak_gib: largest memory that PyTorch held up to there, GiB, beyond what an earlier training left.
        breaks: graph breaks of torch.compile, by their reason.
        compiled: graphs compiled up to the second step.
        recompiled: graphs compiled in the steps from the second to the traced one.
        said: lines of standard error that tell of a way taken, and warnings.
    """

    waits_a_micro_batch: float
    waits_a_step: int
    places: dict[str, int]
    launches: dict[str, int]
    reductions: dict[str, int]
    peak_gib: float
    breaks: dict[str, int]
    compiled: int
    recompiled: int
    said: list[str]


class Traced(Exception):
    """The step to tell of has been made, and the rest of the training is not wanted."""


class Observed:
    """An engine's `train_step` that counts what the traced step asks for, and ends the training after it."""

    def __init__(self, plain: Any, counts: Counts) -> None:
        self._plain, self._counts, self._step, self._compiled = plain, counts, 0, 0
        self.found: dict[str, Any] = {}

    def __call__(self, engine: Any, micro_batches: Iterable[Any], *arguments: Any, **options: Any) -> Any:
        batches, counts = list(micro_batches), self._counts
        self._step += 1
        if self._step == 2:
            self._compiled = _compiled()
        if self._step != TRACED:
            with counts.reading_zeros():
                return self._plain(engine, batches, *arguments, **options)
        before_update = []
        inner = engine._engine._take_model_step  # of DeepSpeed's engines, with a pipeline and without

        def update(*given: Any, **named: Any) -> Any:
            before_update.append(counts.waits())
            return inner(*given, **named)

        engine._engine._take_model_step = update
        with counts.reading_zeros(), counts.counting():
            self._plain(engine, batches, *arguments, **options)
            calls, waits, launches = counts.now(), counts.waits(), counts.launches()
        del engine._engine._take_model_step
        self.found = {
            "waits_a_micro_batch": before_update[-1] / len(batches),
            "waits_a_step": waits - before_update[-1],
            "places": dict(counts.places.most_common()),
            "launches": launches,
            "reductions": {n.split()[-1]: many for n, many in calls.items() if n.startswith("NCCL big reduction")},
            "compiled": self._compiled,
            "recompiled": _compiled() - self._compiled,
        }
        raise Traced


def trace(words: list[str], counts: Counts) -> Found:
    """Train by the flags `words`, which ask for at least four steps, and return what the fourth asked of the device."""
    import torch
    from torch._dynamo.utils import counters

    from deconattn.train import trainer
    from deconattn.train.engine import Engine
    from tests.train.jobs import run_job

    torch._dynamo.reset()
    counters.clear()
    _free()
    torch.cuda.reset_peak_memory_stats()
    before, observed, engines = torch.cuda.memory_allocated(), Observed(Engine.train_step, counts), []

    def train_step(engine: Engine, *given: Any, **named: Any) -> Any:
        engines.append(engine)
        return observed(engine, *given, **named)

    with (
        patch.object(Engine, "train_step", train_step),
        patch.object(Engine, "check_causality", lambda *_: None),  # values are garbage
        patch.object(trainer, "initialize", lambda *_: None),
        _told() as said,
    ):
        try:
            run_job(words)
        except Traced:
            engines[-1].destroy()
        finally:
            engines.clear()
    if not observed.found:
        raise RuntimeError(f"the training ended before its step {TRACED} was counted: {' '.join(words)}")
    return Found(
        peak_gib=(torch.cuda.max_memory_allocated() - before) / 2**30,
        breaks=dict(counters["graph_break"]),
        said=said,
        **observed.found,
    )


def _free() -> None:
    """Free what an earlier training has left: NCCL's watchdog holds tensors until it sees that their work is done."""
    import torch

    torch.cuda.synchronize()
    for _ in range(20):
        gc.collect()
        if torch.cuda.memory_allocated() < 2**20:
            return
        time.sleep(0.1)


def _compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@contextmanager
def _told() -> Iterator[list[str]]:
    """Yield a list that is filled, in the end, with what standard error has told."""
    text: StringIO = StringIO()
    lines: list[str] = []
    with redirect_stderr(text), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        try:
            yield lines
        finally:
            sys.__stderr__.write(text.getvalue())
    told = [line.split("site-packages/")[-1] for line in text.getvalue().splitlines()]
    lines += dict.fromkeys(line for line in told if any(word in line for word in TOLD))


def main(answer: Path, trainings: Path) -> None:
    counts = Counts()
    import torch

    torch.Tensor.__repr__ = lambda self, **_: "tensor"  # DeepSpeed prints some, which counts the finite values in them
    # A Hopper's and a Blackwell's attention would be cuDNN's, which the null GPU does not stand in for.
    torch.backends.cuda.enable_cudnn_sdp(False)
    from deconattn.ops import softmax_attention

    softmax_attention._HOPPER.remove(torch.nn.attention.SDPBackend.CUDNN_ATTENTION)
    from deconattn.parallel.process_group import start_distributed
    from tests.nullgpu import objects

    start_distributed()
    objects.install()
    found = []
    for words in json.loads(trainings.read_text()):
        found.append(dataclasses.asdict(trace(words, counts)))
        answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
