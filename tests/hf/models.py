"""Small models with weights that matter, and a third-party variant."""

from pathlib import Path

import torch
from torch import Tensor

from deconattn.hf.export import export
from deconattn.layers.config import ModelConfig
from deconattn.mixers.plugins import load_plugins
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize

VOCAB = 300
LONGEST = 80
MIXED = ("rndemb", "fixedseq", "staticemb", "mlp", "standard")
PLUGIN = '''"""A variant of a third party: the mean of the values so far."""

import torch
from deconattn.mixers import (
    ProjectedMixer,
    register,
)
from deconattn.ops import reference, prefix_average as averaging


@register("runningmean")
class RunningMean(ProjectedMixer):
    def forward(self, hidden, static, context):
        from deconattn.mixers.context import MixerContext as Context

        assert isinstance(context, Context)
        values = self.per_query_head(self.values(hidden))
        return self.output(averaging.prefix_average(torch.zeros_like(values[..., 0]), values, context.document_ids))

    def attention_map(self, hidden, static, context):
        return reference.prefix_map(torch.zeros(len(hidden), self.config.num_attention_heads, hidden.shape[1]))

    @classmethod
    def forward_flops(cls, config, work):
        return cls.projection_flops(config, work.tokens)
'''


def small_config(*variants: str, **changes: object) -> ModelConfig:
    """Width 32, 4 heads of 8; one layer a variant named."""
    dimensions: dict[str, object] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": len(variants),
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": LONGEST,
        "layer_variants": variants,
        "rope_theta": 10_000.0,
    }
    return ModelConfig(**dimensions | changes)  # type: ignore[arg-type]


def trained(config: ModelConfig) -> CausalLM:
    """As after training: no weight, bias or norm where the initialiser left it."""
    model = CausalLM(config)
    generator = torch.Generator().manual_seed(7)
    initialize(model, 0, torch.randint(config.vocab_size, (config.max_position_embeddings,), generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def exported(model: CausalLM, out: Path, **changes: object) -> Path:
    """Export in fp32 without a tokenizer, unless told otherwise."""
    options: dict[str, object] = {"dtype": torch.float32, "tokenizer_folder": None}
    export(model.state_dict(), model.config, out, **options | changes)  # type: ignore[arg-type]
    return out


def load_plugin(folder: Path) -> Path:
    """Write and load the third-party variant `runningmean`."""
    path = folder / "running-mean.py"
    path.write_text(PLUGIN)
    load_plugins([path])
    return path
