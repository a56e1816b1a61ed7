"""One contestant of `load.py` in a process of its own.

    python -m benchmarks.loading.worker SPEC_JSON SECONDS DESCRIPTOR

Writes its copy of the corpus if there is none, opens it, reads batches for so many seconds or one epoch, and
answers with a line of JSON on the file descriptor. Standard output is left to what libraries print.
"""

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.loading.contestants import CONTESTANTS, Pair, Spec

WARM_BATCHES = 20


def measure(spec: Spec, seconds: float) -> dict[str, Any]:
    """Tokens a second from the first warm batch on; `absent` if the contestant cannot be imported."""
    contestant = CONTESTANTS[spec.name]
    if contestant.package:
        sys.path[:0] = [spec.megatron] if spec.megatron else []
        try:
            importlib.import_module(contestant.package)
        except ImportError as error:
            return {"absent": str(error)}
    if contestant.write and not Path(spec.copy, "whole").is_file():
        shutil.rmtree(spec.copy, ignore_errors=True)
        contestant.write(spec)
        Path(spec.copy, "whole").touch()
    torch.set_num_threads(1)
    started = time.perf_counter()
    with closing(_checked(contestant.read(spec), spec)) as batches:
        for _ in range(WARM_BATCHES):
            next(batches)
        opening = time.perf_counter() - started
        return {"opening_seconds": opening, **_timed(batches, spec, seconds)}


def _timed(batches: Iterator[Pair], spec: Spec, seconds: float) -> dict[str, float]:
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - wall) < seconds:
        if next(batches, None) is None:
            break
        count += 1
    cpu = time.process_time() - cpu
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    tokens = count * spec.batch_size * spec.seq_len
    return {
        "tokens": tokens,
        "seconds": elapsed,
        "cpu_seconds": cpu,
        "tokens_per_second": tokens / elapsed,
        "peak_gib": sum(process.memory_info().rss for process in processes) / 2**30,
    }


def _checked(batches: Iterator[Pair], spec: Spec) -> Generator[Pair, None, None]:
    """The first batch must be what was asked for."""
    ids, labels = next(batches)
    if ids.shape != (spec.batch_size, spec.seq_len) or ids.dtype != torch.int64 or not torch.equal(
        ids[:, 1:], labels[:, :-1]
    ):  # fmt: skip
        raise ValueError(f"{spec.name} gave {ids.dtype} {tuple(ids.shape)}, or labels that are not the next tokens")
    yield ids, labels
    yield from (pair for pair in batches if len(pair[0]) == spec.batch_size)


def main() -> None:
    """Measure and answer."""
    answer = measure(Spec(**json.loads(sys.argv[1])), float(sys.argv[2]))
    with os.fdopen(int(sys.argv[3]), "w") as answers:
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
