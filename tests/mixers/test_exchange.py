"""Which exchange holds for a class under context parallelism."""

from torch import Tensor

from deconattn.mixers import Mixer, MixerContext, mixer_class
from deconattn.mixers.exchange import ContextExchange, NoExchange, exchange_of, over_heads
from deconattn.mixers.fixed_map import FixedMapExchange
from deconattn.mixers.standard import AttentionExchange, Standard


class OtherSource(Standard):
    """Reads something else, and mixes as its base does."""

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        return 2 * hidden


class OtherForward(Standard):
    """Mixes as its base does not, whose exchange knows nothing of it."""

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        return super().forward(hidden, static, context).cumsum(dim=1)


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
