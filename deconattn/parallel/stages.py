"""Partition of the layers over pipeline stages."""

from collections.abc import Sequence
from itertools import accumulate

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.model.flops import head_forward_flops, layer_forward_flops

ROWS = 4
"""Rows of the micro-batch that the stages are balanced for. It only weighs the fixed streams' rows, and the
partition must not depend on a flag that may change when a run is resumed."""


def stage_spans(config: ModelConfig, stages: int, length: int) -> tuple[range, ...]:
    """Return each stage's layers: consecutive, at least one a stage, with the least FLOPs in the largest stage.

    Training FLOPs at sequences of `length` tokens; the last stage has the head too, the embedding costs nothing.

    Raises:
        UserError: more stages than layers.
    """
    if stages > config.num_hidden_layers:
        raise UserError(
            f"--pp {stages} is more than the model's {config.num_hidden_layers} layers: use --pp "
            f"{config.num_hidden_layers} at most"
        )
    # The backward pass costs twice the forward pass everywhere, so forward FLOPs balance training as well.
    layers = layer_forward_flops(config, ROWS, length)
    return balanced_spans(layers, head_forward_flops(config, ROWS, length), stages)


def balanced_spans(costs: Sequence[int], last_extra: int, stages: int) -> tuple[range, ...]:
    """Cut `costs` into `stages` spans whose largest sum, `last_extra` added to the last span's, is least.

    Among those, the sum of squares is least, so that the other stages are even too; then early stages are short,
    as they hold most micro-batches' activations. Exact: two dynamic programmes over (stages left, first layer).
    """
    count = len(costs)
    before = [0, *accumulate(costs)]

    def cost(start: int, stop: int) -> int:
        return before[stop] - before[start] + (last_extra if stop == count else 0)

    largest = [cost(start, count) for start in range(count)]  # of the best cut of costs[start:]
    for left in range(2, stages + 1):
        largest = [
            min(max(cost(start, stop), largest[stop]) for stop in range(start + 1, count - left + 2))
            for start in range(count - left + 1)
        ]
    limit = largest[0]

    # (sum of squares, ends of the spans) of the best cut of costs[start:], None where none keeps within the limit.
    best: list[tuple[int, tuple[int, ...]] | None] = [
        (cost(start, count) ** 2, (count,)) if cost(start, count) <= limit else None for start in range(count)
    ]
    for left in range(2, stages + 1):
        best = [
            min(
                (
                    (cost(start, stop) ** 2 + rest[0], (stop, *rest[1]))
                    for stop in range(start + 1, count - left + 2)
                    if (rest := best[stop]) is not None and cost(start, stop) <= limit
                ),
                default=None,
            )
            for start in range(count - left + 1)
        ]
    assert best[0] is not None
    ends = best[0][1]
    return tuple(range(start, stop) for start, stop in zip((0, *ends), ends, strict=False))
