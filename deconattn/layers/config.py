"""Model configuration: dimensions and the variant of each layer, under Hugging Face's names."""

from dataclasses import dataclass
from typing import Any

from deconattn.errors import UserError
from deconattn.layers.rope_scaling import RopeScaling


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of one model; checked at construction.

    Raises:
        UserError: a dimension that cannot be, with its remedy.
    """

    vocab_size: int
    """Rows of the embedding table and of the head."""
    hidden_size: int
    """Width d of the residual stream."""
    intermediate_size: int
    """Width of the SwiGLU feed-forward block."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    """Fewer than `num_attention_heads` is grouped-query attention."""
    head_dim: int
    max_position_embeddings: int
    """Longest sequence; also the length of the fixed stream."""
    layer_variants: tuple[str, ...]
    """The variant of each layer, first layer first: a mixer's name, or several by heads."""
    attention_bias: bool = True
    """Bias on Q, K and V (Qwen2); Llama and Qwen3 have none."""
    qk_norm: bool = False
    """RMSNorm over each head's query and key (Qwen3)."""
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    rope_scaling: RopeScaling | None = None
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}: choose a divisor"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd: rotary embeddings need an even one")
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "yarn" and self.rope_theta <= 1:
            raise UserError(f"rope_theta is {self.rope_theta:g}: YaRN needs a base above 1")
        if len(self.layer_variants) != self.num_hidden_layers:
            raise UserError(
                f"layer_variants names {len(self.layer_variants)} layers but num_hidden_layers is "
                f"{self.num_hidden_layers}: give one variant a layer"
            )

    @property
    def query_size(self) -> int:
        """Width of all query heads side by side."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads side by side."""
        return self.num_key_value_heads * self.head_dim

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """Base and scaling of the rotary embedding as Hugging Face writes them."""
        if self.rope_scaling is None:
            return {"rope_theta": self.rope_theta, "rope_type": "default"}
        return self.rope_scaling.parameters(self.rope_theta)
