"""What a hybrid costs by the cost model: FLOPs of a prefill, bytes of the cache, or time of a decoding step."""

from dataclasses import dataclass, replace

from deconattn.config.pattern import nearest
from deconattn.cost.cards import CARDS
from deconattn.cost.generation import cache_bytes, decode_flops, prefill_flops
from deconattn.cost.parameters import rank_parameters
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.surgery.assignments import Assignment

KINDS = ("flops", "cache", "decode")
BYTES = 2
"""Of an element, in bf16."""


@dataclass(frozen=True)
class Budget:
    """A share of the model's own cost.

    Attributes:
        kind: of :data:`KINDS`.
        share: of what the model itself costs.
        length: tokens of the context.
        rows: sequences that are decoded together.
        gpu: whose bandwidth and peak a decoding step goes by.
    """

    kind: str
    share: float
    length: int
    rows: int
    gpu: str

    def cost(self, config: ModelConfig, assignment: Assignment) -> float:
        """Return FLOPs, bytes or seconds of a hybrid; what fixed streams need once for all rows counts nowhere."""
        config = replace(config, layer_variants=assignment, max_position_embeddings=self.length)
        if self.kind == "flops":
            return prefill_flops(config, 1, self.length, BYTES)
        held = cache_bytes(config, self.rows, self.length, BYTES)
        if self.kind == "cache":
            return held
        # A step reads all weights and the cache once; no kernel is faster than the slower of memory and arithmetic.
        weights = BYTES * rank_parameters(config, range(config.num_hidden_layers)).total
        card = CARDS[self.gpu]
        arithmetic = decode_flops(config, self.rows, self.length, BYTES) / card.narrow
        return max(arithmetic, (weights + held) / card.bandwidth)

    def part(self, config: ModelConfig, assignment: Assignment, own: Assignment) -> float:
        """Return a hybrid's cost as a part of the model's own."""
        return self.cost(config, assignment) / self.cost(config, own)

    def fits(self, config: ModelConfig, assignment: Assignment, own: Assignment) -> bool:
        """Whether a hybrid is within the budget."""
        return self.part(config, assignment, own) <= self.share

    @property
    def words(self) -> str:
        """The cost, in words."""
        names = {"flops": "FLOPs of a prefill", "cache": "bytes of the cache", "decode": f"decoding on {self.gpu}"}
        return f"{names[self.kind]} at {self.length} tokens"


def read_budget(text: str, length: int, rows: int, gpu: str) -> Budget:
    """Read `flops=0.7` and its like.

    Raises:
        UserError: it is no such thing, or no GPU has that name.
    """
    kind, equals, share = text.partition("=")
    if kind not in KINDS or not equals:
        raise UserError(f"--budget {text}{nearest(kind, KINDS)}: give flops, cache or decode, = and 0.5 or so")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UserError(f"--budget {text}: give a share of the model's own cost, between 0 and 1")
    if gpu.upper() not in CARDS:
        raise UserError(f"--budget-gpu {gpu}: give one of {', '.join(CARDS).lower()}")
    return Budget(kind, value, length, rows, gpu.upper())
