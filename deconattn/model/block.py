"""Pre-norm Transformer block (Qwen2's): the mixer, then a SwiGLU feed-forward."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.splits import Split, column, row
from deconattn.mixers import LayerCache, MixerContext, Step, mixer_class
from deconattn.ops.swiglu import swiglu


class FeedForward(nn.Module):
    """Down(SiLU(Gate(x)) * Up(x))."""

    splits: ClassVar[Mapping[str, Split]] = {"gate_proj": column(), "up_proj": column(), "down_proj": row()}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(swiglu(*project(hidden, (self.gate_proj, self.up_proj))))


class Block(nn.Module):
    """Pre-norm Transformer block: [R, L, d] -> [R, L, d]."""

    def __init__(self, config: ModelConfig, variant: str) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = mixer_class(variant)(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, hidden: Tensor, static: Tensor | None, context: MixerContext | Step, cache: LayerCache | None = None
    ) -> Tensor:
        """Return hidden states of all rows, or of the first `context.output_rows` where that is given.

        Args:
            static: [R, L, d], the token embeddings, or None; they pass the same input norm as the hidden states.
            context: a :class:`Step` with a cache, whose tokens these continue.
            cache: beside a :class:`MixerContext` of fixed streams alone, it receives the mixer's fixed part.
        """
        inputs = self.mixer_inputs(hidden, static)
        if isinstance(context, Step):
            hidden = hidden + self.self_attn(*inputs, context, cache)
        else:
            mixed = self.self_attn(*inputs, context) if cache is None else self.self_attn(*inputs, context, cache)
            hidden = context.read(hidden) + context.read(mixed)
            if context.output_rows == 0:
                return hidden
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def mixer_inputs(self, hidden: Tensor, static: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Apply the input norm to both; None for static embeddings that the mixer does not read."""
        needed = static is not None and self.self_attn.needs_static_embeddings
        return self.input_layernorm(hidden), self.input_layernorm(static) if needed else None
