"""Plugin for vLLM's entry point `vllm.general_plugins`: registers our architecture and checks what can be served.

Importable without vLLM. vLLM calls :func:`register` in every process of an engine.
"""

import logging
from typing import Any

from deconattn.errors import UserError
from deconattn.layers.rope_scaling import yarn_attention_factor
from deconattn.mixers import mixer_class
from deconattn.mixers.mlp import matched_width

SERVED = ("standard", "staticemb", "rndemb", "fixedseq", "mlp")
"""Variants whose only state is vLLM's keys and values of every token, or none."""

_ARCHITECTURE = "DeconAttnForCausalLM"
_LOG = logging.getLogger("vllm.deconattn")  # below the one logger that vLLM prints


def register() -> None:
    """Register the architecture of our exports, and :class:`Checks`, which vLLM runs before it starts an engine."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    ModelRegistry.register_model(_ARCHITECTURE, f"deconattn.serving.vllm_model:{_ARCHITECTURE}")
    MODELS_CONFIG_MAP[_ARCHITECTURE] = Checks


class Checks:
    """Hooks of vLLM on an architecture's configuration, which run before its processes are launched."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Do nothing before the whole configuration is there."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Run :func:`check`. Without attention there are no prefixes to cache, and vLLM's cache of them would fail."""
        check(vllm_config)
        tp_size, config = vllm_config.parallel_config.tensor_parallel_size, vllm_config.model_config.hf_config
        if "mlp" in config.layer_variants and (width := matched_width(config.to_model_config())) % tp_size:
            _LOG.warning(
                "%d ranks do not divide the width %d of the mlp layers: each computes all of it", tp_size, width
            )
        if set(config.layer_variants) == {"mlp"}:
            vllm_config.cache_config.enable_prefix_caching = False


def check(vllm_config: Any) -> None:
    """Refuse configurations that would be served wrongly.

    Args:
        vllm_config: vLLM's `VllmConfig` of an engine for one of our exports.

    Raises:
        UserError: a variant without its state in vLLM, quantisation, a rotary scaling that vLLM would compute
            otherwise, or a context or a topology that the fixed stream does not have.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    config = model.hf_config.to_model_config()
    for variant in config.layer_variants:
        if variant not in SERVED:
            raise UserError(
                f"variant {variant!r} cannot be served by vLLM, which keeps no state for it (only {', '.join(SERVED)} "
                "can): use transformers' generate"
            )
    if vllm_config.quant_config is not None:
        raise UserError(f"--quantization {model.quantization} is not supported for this model: serve it without")
    scaling = config.rope_scaling
    if (
        scaling is not None
        and scaling.rope_type == "yarn"
        and scaling.attention_factor != yarn_attention_factor(scaling.factor)
    ):
        raise UserError(
            f"rope scaling yarn has an attention_factor of {scaling.attention_factor:g}, which vLLM does not read: "
            "use transformers' generate"
        )
    fixed = [variant for variant in config.layer_variants if mixer_class(variant).fixed_stream is not None]
    if not fixed:
        return
    if model.max_model_len > config.max_position_embeddings:
        raise UserError(
            f"--max-model-len {model.max_model_len} is beyond the fixed stream of {config.max_position_embeddings} "
            f"that {fixed[0]} reads: lower it"
        )
    if parallel.pipeline_parallel_size > 1:
        raise UserError(
            f"--pipeline-parallel-size {parallel.pipeline_parallel_size}: the fixed stream of {fixed[0]} passes all "
            "layers in one process: use --tensor-parallel-size instead"
        )
