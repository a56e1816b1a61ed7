"""Configuration class for Hugging Face."""

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rope_scaling import RopeScaling


class DeconAttnConfig(PreTrainedConfig):
    """Configuration with the fields of :class:`ModelConfig`; `layer_variants` names one variant a layer.

    Raises:
        UserError: from :meth:`to_model_config`, a dimension or a rotary scaling that cannot be.
    """

    model_type = "deconattn"

    vocab_size: int = 50_304
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    max_position_embeddings: int = 2048
    layer_variants: list[str] | None = None
    """None is standard attention throughout."""
    attention_bias: bool = True
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    rope_parameters: dict[str, Any] | None = None
    """The scaling of the rotary embedding, and its base once more; None is no scaling."""
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        if self.layer_variants is None:
            self.layer_variants = ["standard"] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, config: ModelConfig, **kwargs: object) -> "DeconAttnConfig":
        """Convert a model's configuration; `kwargs` are Hugging Face's further fields (`eos_token_id`, `dtype`)."""
        fields = dataclasses.asdict(config) | {"layer_variants": list(config.layer_variants)}
        del fields["rope_scaling"]
        return cls(**fields, rope_parameters=config.rope_parameters, **kwargs)

    def to_model_config(self) -> ModelConfig:
        """Convert to the model's own configuration."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelConfig)}
        rope = self.rope_parameters or {}
        if rope.get("rope_theta", self.rope_theta) != self.rope_theta:
            raise UserError(
                f"rope_theta is {self.rope_theta:g} but {rope['rope_theta']:g} in rope_parameters: give one of them"
            )
        if rope.get("partial_rotary_factor", 1) != 1:
            raise UserError("our model has no partial rotary embedding (partial_rotary_factor): give a model without")
        return ModelConfig(
            **fields | {"layer_variants": tuple(fields["layer_variants"]), "rope_scaling": RopeScaling.of(rope)}
        )
