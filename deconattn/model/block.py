"""One pre-norm Transformer block (Qwen2's): the mixer, then a SwiGLU feed-forward."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import silu

from deconattn.mixers import LayerCache, MixerContext, Step, mixer_class
from deconattn.model.config import ModelConfig
from deconattn.model.linear import Linear
from deconattn.model.splits import Split, column, row


class FeedForward(nn.Module):
    """Down(SiLU(Gate(x)) * Up(x))."""

    splits: ClassVar[Mapping[str, Split]] = {"gate_proj": column(), "up_proj": column(), "down_proj": row()}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Block(nn.Module):
    """Hidden states [R, L, d] to hidden states."""

    def __init__(self, config: ModelConfig, variant: str) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = mixer_class(variant)(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        """Of the first `context.output_rows` rows where that is given.

        Args:
            static: [R, L, d], the token embeddings, or None; they pass the same input norm as the hidden states.
        """
        mixed = self.self_attn(*self.mixer_inputs(hidden, static), context)
        hidden = hidden[: context.output_rows] + mixed[: context.output_rows]
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def extend(self, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        """For tokens [R, T, d] that continue those in the layer's cache."""
        hidden = hidden + self.self_attn.extend(*self.mixer_inputs(hidden, static), step, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def mixer_inputs(self, hidden: Tensor, static: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both through the input norm, the static embeddings only where the mixer reads them."""
        needed = static is not None and self.self_attn.needs_static_embeddings
        return self.input_layernorm(hidden), self.input_layernorm(static) if needed else None
