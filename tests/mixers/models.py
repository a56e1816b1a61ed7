"""The variants and patterns that the contract is tested on, one of a third party among them, and small models."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.mixers import MixerContext, ProjectedMixer, Workload, variant_names, zoo_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from deconattn.ops import reference

OURS = ("standard", "mlp", "approximate", "nonapproximate", "rndemb", "fixedseq", "staticemb")
VARIANTS = (*variant_names(), "thirdparty")
ZOO = zoo_names()
EVERY = (*VARIANTS, *(pytest.param(variant, marks=pytest.mark.slow) for variant in ZOO))
"""Of the zoo each run of the contract is slow; tests/mixers/test_zoo.py has the quick part."""
MIXED = (
    ("rndemb", "standard", "fixedseq", "nonapproximate"),
    ("staticemb", "fixedseq", "mlp", "standard", "approximate"),
    ("standard", "thirdparty", "staticemb", "fixedseq", "mlp", "rndemb"),
)
PATTERNS = (
    *((variant,) * 3 for variant in VARIANTS),
    *MIXED,
    *(pytest.param((variant, "fixedseq", variant), marks=pytest.mark.slow) for variant in ZOO),
)
HEADS = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {"num_key_value_heads": 2},
    "gqa_qk_norm": {"num_key_value_heads": 1, "qk_norm": True, "attention_bias": False},
}
LENGTHS = (1, 63, 64, 65, 200, 300)
BASE = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=300,
    layer_variants=("standard",),
)


class ThirdParty(ProjectedMixer):
    """Reads all that a mixer may: queries from the random stream, keys from the static embeddings."""

    fixed_stream = "random"
    needs_static_embeddings = True

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        scores, visible = self._scores(hidden, static, context)
        weights = scores.sigmoid() * visible
        mixed = weights @ self.per_query_head(self.values(hidden))
        return self.output(mixed / weights.sum(dim=-1, keepdim=True))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        scores, visible = self._scores(hidden, static, context)
        return nn.functional.logsigmoid(scores).masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def _scores(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> tuple[Tensor, Tensor]:
        assert static is not None
        row = context.fixed_rows["random"]
        queries = context.rotary.row(row)(*self.queries_keys(hidden[row].unsqueeze(0)))[0]
        keys = context.rotary(*self.queries_keys(static))[1]
        if context.documents is None:
            visible = reference.allowed(hidden.shape[1])
        else:
            queries = queries[0][:, context.documents.position_ids].transpose(0, 1)
            visible = reference.allowed(hidden.shape[1], context.documents.ids[:, None])
        return reference.scores(queries, self.per_query_head(keys)), visible

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return cls.projection_flops(config, work.tokens) + 2 * work.tokens * work.length * config.query_size


def mixes(variant: str) -> bool:
    return variant != "mlp"


def build_model(variants: tuple[str, ...], **changes: object) -> CausalLM:
    """A whole model in float64, away from its initial weights."""
    settings = {"num_key_value_heads": 2, "max_position_embeddings": 200, **changes}
    config = replace(BASE, num_hidden_layers=len(variants), layer_variants=variants, **settings)
    generator = torch.Generator().manual_seed(3)
    model = CausalLM(config).double()
    initialize(
        model,
        seed=0,
        fixed_ids=torch.randint(config.vocab_size, (config.max_position_embeddings,), generator=generator),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.double) * 0.2)
    return model


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(BASE.vocab_size, shape, generator=torch.Generator().manual_seed(1))
