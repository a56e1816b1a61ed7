"""Training steps on the null GPU, and what each was counted to ask for.

    python -m benchmarks.roofline.trace ANSWER ORDER    # JSON files; in the environment of `tests.nullgpu.build.build`

An order is a list of objects: `words` of a training's command line beside `vocabulary`; its answer is a list of the
works of a step, or the message of what it ended in.
"""

import dataclasses
import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.roofline.counting import Counting, Regions, stubbed_triton
from benchmarks.roofline.works import Sizes
from deconattn.cost.work import Work


class Tracer:
    """One training after another in this process."""

    def __init__(self) -> None:
        from deconattn.parallel.process_group import start_distributed
        from tests.nullgpu.trace import Counts

        self._counts = Counts()
        # DeepSpeed prints some tensors, whose values would be looked at.
        torch.Tensor.__repr__ = lambda self, **_: "tensor"  # type: ignore[method-assign, assignment]
        start_distributed()
        self._now: Counting | None = None

    def counting(self) -> Counting | None:
        return self._now

    def trace(self, words: list[str], vocabulary: int, micro_batches: int) -> dict[Work, int]:
        """Take two steps of three micro-batches; return the works of one of so many as the second one's.

        The first micro-batch sets sums of gradients and runs fixed streams to be held, the last one differentiates
        these and has the update, and those between are alike.
        """
        from deconattn.config.command_line import parse_training_flags
        from deconattn.config.flags import model_config
        from deconattn.data import Batch
        from deconattn.parallel.build import build_model
        from deconattn.parallel.topology import Topology
        from deconattn.train.engine import Engine

        flags = parse_training_flags([*words, "--vocab-size", str(vocabulary)])
        length, rows = flags.data.seq_len, flags.optimization.micro_batch_size
        config = model_config(flags.model, vocabulary, length)
        topology = Topology.create()
        model = build_model(config, topology).to("cuda")  # its weights are whatever is there
        engine = Engine(model, flags, topology)
        tokens = torch.zeros(rows, length, dtype=torch.long)
        batches = [Batch(tokens, tokens.clone())] * engine.accumulation_steps
        with self._counts.reading_zeros():
            engine.train_step(batches, 1e-4)
            regions = Regions()
            regions.follow(model)
            counting = Counting(Sizes(length, config.intermediate_size, vocabulary), regions, self._counts.queued)
            done: list[Counter[Work]] = []
            inner, plain_step, plain_backward = engine._engine, engine._engine.step, engine._engine.backward

            def backward(*args: Any, **kwargs: Any) -> Any:
                regions.enter("gradients")
                return plain_backward(*args, **kwargs)

            def step(*args: Any, **kwargs: Any) -> Any:
                if inner.is_gradient_accumulation_boundary():
                    regions.enter("update")
                    return plain_step(*args, **kwargs)
                result = plain_step(*args, **kwargs)
                done.append(Counter(counting.works))
                counting.works.clear()
                return result

            inner.step, inner.backward = step, backward
            self._now = counting
            with counting:
                engine.train_step(batches, 1e-4)
            self._now = None
            del inner.step, inner.backward
        engine.destroy()
        torch.cuda.empty_cache()
        (first, between), last = done, counting.works
        every = first | between | last
        return {work: first[work] + (micro_batches - 2) * between[work] + last[work] for work in every}


def main(answer: Path, orders: Path) -> None:
    """Trace the orders one by one, and write each answer as it comes."""
    tracer = Tracer()
    found: list[Any] = []
    with stubbed_triton(tracer.counting):
        for order in json.loads(orders.read_text()):
            if order.get("reset"):
                torch._dynamo.reset()
            try:
                works = tracer.trace(order["words"], order["vocabulary"], order["micro_batches"])
                found.append([dataclasses.asdict(work) | {"count": count} for work, count in works.items()])
            except Exception as error:  # the others' numbers are wanted all the same
                traceback.print_exc()
                found.append(f"{type(error).__name__}: {error}")
            answer.write_text(json.dumps(found))
            print("traced", *order["words"], flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
