"""Which exchange holds for a class under context parallelism."""

import torch
from torch import Tensor

from deconattn.layers.rotary import Rotary
from deconattn.mixers import Mixer, MixerContext, mixer_class
from deconattn.mixers.costs import Workload
from deconattn.mixers.exchange import ContextExchange, NoExchange, SharedContext, exchange_of, over_heads
from deconattn.mixers.fixed_map import FixedMapExchange
from deconattn.mixers.standard import AttentionExchange, Standard
from deconattn.ops.documents import Documents
from tests.hf.models import small_config


class OtherSource(Standard):
    """Reads something else, and mixes as its base does."""

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        return 2 * hidden


class OtherForward(Standard):
    """Mixes as its base does not, whose exchange knows nothing of it."""

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        return super().forward(hidden, static, context).cumsum(dim=1)


class OtherMix(Standard):
    """Mixes whole rows as nobody else does."""

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None) -> Tensor:
        return super().mix(queries, keys, values, documents).cumsum(dim=2)


class Declared(OtherForward):
    """Says what holds for it."""

    context_exchange = NoExchange()


def kind(mixer: type[Mixer]) -> type[ContextExchange]:
    return type(exchange_of(mixer))


def test_a_declaration_holds_until_a_class_has_a_forward_of_its_own() -> None:
    assert kind(Standard) is kind(mixer_class("staticemb")) is kind(OtherSource) is AttentionExchange
    assert kind(OtherForward) is ContextExchange
    assert kind(Declared) is NoExchange
    assert kind(mixer_class("fixedseq")) is FixedMapExchange
    assert kind(mixer_class("mla")) is ContextExchange


def test_heads_divide_or_do_not() -> None:
    assert over_heads(8, 4, 2) == 4
    assert over_heads(8, 2, 4) == 4  # copies
    assert over_heads(6, 2, 3) is None
    assert over_heads(9, 3, 2) is None


def test_rows_are_gathered_where_heads_do_not_divide_and_a_class_mixes_as_its_base_does_not() -> None:
    config, work = small_config("standard"), Workload(rows=2, length=12)
    gathered = ContextExchange().sent_elements(Standard, config, work, 3)
    exchange = OtherMix.context_exchange
    assert exchange.sent_elements(OtherMix, config, work, 3) == gathered
    assert exchange.sent_backward(OtherMix, config, work, 3) == gathered
    assert exchange.sent_elements(Standard, config, work, 3) != gathered
    ranks = Recorder()
    mixer = OtherMix(config)
    hidden = torch.randn(2, 4, config.hidden_size)
    rotary = Rotary.of(config, torch.arange(4)[None], torch.float32)
    context = SharedContext(rotary, None, {}, ranks=ranks, whole_documents=None, whole_rotary=lambda: rotary)
    exchange.mix(mixer, hidden, None, context)
    assert ranks.asked == ["whole", "part"]


class Recorder:
    """Three ranks, of which this is the only one to answer."""

    rank, size = 0, 3

    def __init__(self) -> None:
        self.asked: list[str] = []

    def whole(self, part: Tensor, dim: int = 1) -> Tensor:
        self.asked.append("whole")
        return part

    def part(self, whole: Tensor, dim: int = 1) -> Tensor:
        self.asked.append("part")
        return whole
