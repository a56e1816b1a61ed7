"""Configuration class for Hugging Face."""

import dataclasses

from transformers import PreTrainedConfig

from deconattn.layers.config import ModelConfig


class DeconAttnConfig(PreTrainedConfig):
    """Configuration with the fields of :class:`ModelConfig`; `layer_variants` names one variant a layer.

    Raises:
        UserError: from :meth:`to_model_config`, a dimension that cannot be.
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
        return cls(**fields, **kwargs)

    def to_model_config(self) -> ModelConfig:
        """Convert to the model's own configuration."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelConfig)}
        return ModelConfig(**fields | {"layer_variants": tuple(fields["layer_variants"])})
