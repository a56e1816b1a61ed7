"""A contestant of `step.py` in a process of its own: makes its model, waits for its turn, times optimiser steps.

python -m benchmarks.training.worker CONTESTANT_JSON WORKLOAD_JSON
"""

import dataclasses
import importlib
import json
import sys
import time
from typing import Any

import torch

from benchmarks.training.contestants import Contestant, Place, Workload, prepare
from benchmarks.training.process import output_file, wait_for_turn
from deconattn.data import Batch
from deconattn.ops.backend import choose
from deconattn.parallel import process_group
from deconattn.train.metrics import memory_gib

BATCHES = 4
"""Different batches that the steps go round; random, so that no step is easier than another."""


def main() -> None:
    """Prepare, wait, measure, write."""
    contestant, workload = Contestant(**json.loads(sys.argv[1])), Workload(**json.loads(sys.argv[2]))
    process_group.quiet_accelerator()
    importlib.import_module("deepspeed")  # starting torch.distributed would import it in our turn
    place = prepare(contestant, workload)
    wait_for_turn()
    try:
        result = measure(place, workload)
    except torch.OutOfMemoryError as error:
        result = {"failure": str(error), "out_of_memory": True}
    output_file().write_text(json.dumps(result))


def measure(place: Place, workload: Workload) -> dict[str, Any]:
    """Seconds an optimiser step, a sample each; losses (nats), skipped steps, peak memory (GiB) and start-up times."""
    start = time.perf_counter()
    device = process_group.start_distributed()
    step = place(device)
    batches = random_batches(workload, pinned=device.type == "cuda")
    placed = time.perf_counter()
    losses, skipped, seconds = [], 0, []
    for number in range(workload.warmup_steps):
        loss, was_skipped = step(batches[number % BATCHES])
        losses.append(float(loss))
        skipped += was_skipped
    synchronize(device)
    warm = time.perf_counter()
    for sample in range(workload.samples):
        before = time.perf_counter()
        for number in range(workload.steps_a_sample):
            loss, was_skipped = step(batches[(sample * workload.steps_a_sample + number) % BATCHES])
            skipped += was_skipped
        synchronize(device)
        seconds.append((time.perf_counter() - before) / workload.steps_a_sample)
        losses.append(float(loss))
    head_dim = workload.model_config(Contestant()).head_dim
    return {
        "seconds_a_step": seconds,
        "losses": losses,
        "skipped_steps": skipped,
        "memory_gib": memory_gib(),
        "placing_seconds": placed - start,
        "warmup_seconds": warm - placed,
        "backend": dataclasses.asdict(choose(torch.empty(1, head_dim, dtype=torch.bfloat16, device=device))),
    }


def random_batches(workload: Workload, pinned: bool) -> list[Batch]:
    """:data:`BATCHES` batches of random tokens in host memory, the same for every contestant."""
    generator = torch.Generator().manual_seed(workload.seed)
    shape = (workload.micro_batch_size, workload.seq_len + 1)
    drawn = [torch.randint(workload.vocab_size, shape, generator=generator) for _ in range(BATCHES)]
    batches = [Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) for tokens in drawn]
    return [batch.pinned() for batch in batches] if pinned else batches


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
