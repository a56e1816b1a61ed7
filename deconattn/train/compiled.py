"""torch.compile of a model's layers, one by one: layers that are alike share what is compiled."""

from typing import Any

from deconattn.model.decoder import Decoder

SPECIALISATIONS = 16
"""Of one kind of layer: with and without gradients, in training and validation, and as the number of documents' offsets
doubles. What comes after runs uncompiled, and torch warns of it."""


def compile_layers(decoder: Decoder, **options: Any) -> None:
    """Compile each layer of a decoder's span, whose shapes are those of one micro-batch and one sequence length.

    Rows differ from layer to layer where fixed streams end; taken for a size that changes they would cost kernels for
    any size. torch counts the specialisations of all layers together, so that its limit is for one kind of layer.

    Args:
        options: of `torch.compile`.
    """
    import torch._dynamo

    kinds = {
        (
            decoder.model_config.layer_variants[index],
            (index > decoder.last_fixed_layer) - (index < decoder.last_fixed_layer),
            index <= decoder.last_static_layer,
        )
        for index in decoder.span
    }
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, SPECIALISATIONS * len(kinds))
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, config.recompile_limit)
    for layer in decoder.blocks:
        layer.compile(dynamic=False, **options)
