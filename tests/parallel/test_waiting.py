"""What of a step counts as waiting for other ranks."""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from deconattn.parallel.waiting import _noting_call, measuring

CPU = torch.device("cpu")


def test_only_what_is_within_a_step_counts() -> None:
    call = _noting_call(lambda *_: time.sleep(0.02))
    at_once = SimpleNamespace(asyncOp=False)
    call(at_once)
    with measuring(CPU) as step:
        call(at_once)  # returns no work to wait for, as NCCL's synchronous collectives do
        call(SimpleNamespace(asyncOp=True))  # overlaps with what comes next
        time.sleep(0.02)
    call(at_once)
    assert step.waited >= 0.02
    assert step.waited + 0.04 <= step.seconds


@pytest.mark.parametrize("asynchronous", [False, True])
def test_collectives_of_pytorch_are_seen(process_group: None, asynchronous: bool) -> None:
    with measuring(CPU) as step:
        work = dist.all_reduce(torch.ones(3), async_op=asynchronous)
        if work is not None:
            work.wait()
        dist.barrier()
    assert len(step._waits) == 2
    assert 0 < step.waited < step.seconds


def test_a_failing_step_ends_the_measurement(process_group: None) -> None:
    with pytest.raises(ValueError, match="a bug"), measuring(CPU) as step:
        raise ValueError("a bug")
    dist.barrier()
    assert not step._waits
