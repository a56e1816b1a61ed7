"""The trained model as Hugging Face runs it: the same decoder and head, Hugging Face's calling convention."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from deconattn.errors import UserError
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.mixers import variant_names
from deconattn.model.causal_lm import Head
from deconattn.model.decoder import Decoder
from deconattn.ops.cross_entropy import IGNORED


class DeconAttnForCausalLM(PreTrainedModel, GenerationMixin):
    """Its state dict has the names of :class:`deconattn.model.causal_lm.CausalLM`'s, buffers included.

    No cache yet: `generate` runs over the whole sequence for every new token.

    Raises:
        UserError: a layer's variant is not registered.
    """

    config_class = DeconAttnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (Hugging Face's declaration)
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True  # the ops choose the implementation themselves; this accepts Hugging Face's default

    def __init__(self, config: DeconAttnConfig) -> None:
        super().__init__(config)
        unknown = sorted(set(config.layer_variants or ()) - set(variant_names()))
        if unknown:
            raise UserError(f"variant {unknown[0]!r} is not registered: load the plugin file that registers it first")
        model_config = config.to_model_config()
        self.model = Decoder(model_config)
        self.lm_head = Head(model_config.hidden_size, model_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, kept, vocab_size] and, with labels, the mean loss.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], zero at padding, which may lie to the left or to the right.
            position_ids: int64 [B or 1, L]; where they do not go up by one a new document begins, and mixing
                does not cross it. Positions are counted from each document's first token whatever they say.
            labels: int64 [B, L], the inputs' own ids (shifted here), -100 where ignored.
            use_cache: accepted and without effect.
            logits_to_keep: only the last so many positions' logits (0: all), or the positions' indices.
            num_items_in_batch: what the summed loss is divided by instead of the number of labels
                (gradient accumulation).

        Raises:
            ValueError: a cache is given, or a mask with padding between real tokens.
        """
        if past_key_values is not None:
            raise ValueError("this model keeps no cache: call it with the whole sequence and use_cache=False")
        hidden = self.model(input_ids, *_documents(input_ids, attention_mask, position_ids))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            targets = labels[:, 1:].to(hidden.device)
            total = self.lm_head(hidden[:, :-1], targets)
            loss = total / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in Hugging Face, without a cache whatever is asked for."""
        return super().generate(*args, **{**kwargs, "use_cache": False})

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Decoder):
            if "random" in module.streams:
                initialization.normal_(module.fixed_embeddings, mean=0.0, std=self.config.initializer_range)
            if "text" in module.streams:
                initialization.zeros_(module.fixed_ids)  # there is no text to be had here: weights bring it

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.gradient_checkpointing = enable
        self.model.activation_checkpointing = enable


def _documents(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Position ids and document ids, int64 [B, L] each, padding being a document of its own; None for whole rows."""
    if attention_mask is None and position_ids is None:
        return None, None
    starts = torch.zeros_like(input_ids, dtype=torch.bool)
    if position_ids is not None:
        starts[:, 1:] |= position_ids[:, 1:] != position_ids[:, :-1] + 1
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            shape = tuple(attention_mask.shape)
            raise ValueError(f"attention_mask has shape {shape}: give one of input_ids' {tuple(input_ids.shape)}")
        real = attention_mask.bool()
        starts[:, 1:] |= real[:, 1:] != real[:, :-1]
        spans = real[:, 0] + (real[:, 1:] & ~real[:, :-1]).sum(dim=1)
        if (spans > 1).any():
            raise ValueError("attention_mask has padding between real tokens: pad on one side")
    if not starts.any():
        return None, None
    indices = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(starts)
    return indices - (indices * starts).cummax(dim=1).values, starts.long().cumsum(dim=1)
