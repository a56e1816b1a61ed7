"""The trained model as Hugging Face runs it: the same decoder and head, Hugging Face's calling convention."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from deconattn.errors import UserError
from deconattn.hf.cache_deconattn import DeconAttnCache
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.mixers import variant_names
from deconattn.model.causal_lm import Head
from deconattn.model.decoder import Decoder
from deconattn.model.decoding import check_length
from deconattn.model.padding import Padding
from deconattn.ops.cross_entropy import IGNORED


class DeconAttnForCausalLM(PreTrainedModel, GenerationMixin):
    """Its state dict has the names of :class:`deconattn.model.causal_lm.CausalLM`'s, buffers included.

    `generate` keeps of each layer what its variant needs (:class:`DeconAttnCache`); `cache_implementation="static"`
    gives tensors of constant shape, for torch.compile.

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
        past_key_values: DeconAttnCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, kept, vocab_size] and, with labels, the mean loss.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], or with a cache [B, tokens seen + L] (or L): zero at padding, which may be anywhere
                and counts for nothing. A single token that continues a cache is taken for a real one.
            position_ids: int64 [B or 1, L]; where they do not go up by one a new document begins, and mixing
                does not cross it. Positions are counted from each document's first token whatever they say.
            past_key_values: tokens before these, which the call adds these to.
            labels: int64 [B, L], the inputs' own ids (shifted here), -100 where ignored.
            use_cache: return a cache; by default only one that was given. No gradient flows through it.
            logits_to_keep: only the last so many positions' logits (0: all), or the positions' indices.
            num_items_in_batch: what the summed loss is divided by instead of the number of labels
                (gradient accumulation).

        Raises:
            UserError: the sequence is beyond the fixed stream or the cache.
            ValueError: a mask of another shape, another model's cache, or a cache for rows of several documents.
        """
        cache = past_key_values
        if cache is None and use_cache:
            cache = DeconAttnCache(self.model)
        if cache is not None and not isinstance(cache, DeconAttnCache):
            raise ValueError(f"past_key_values is a {type(cache).__name__}: give a DeconAttnCache, or leave it out")
        hidden = self._hidden(input_ids, attention_mask, position_ids, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            targets = labels[:, 1:].to(hidden.device)
            total = self.lm_head(hidden[:, :-1], targets)
            loss = total / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _hidden(
        self, input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: DeconAttnCache | None
    ) -> Tensor:
        """[B, L] -> [B, L, hidden_size], in the caller's columns."""
        tokens = input_ids.shape[1]
        if cache is not None and not cache.is_empty and tokens == 1:
            return self.model.extend(input_ids, cache)
        padding = None if mask is None else Padding.of(_new_columns(mask, input_ids, cache))
        starts = _document_starts(input_ids, position_ids, padding)
        if padding is not None:
            input_ids = padding.pack(input_ids)
        if cache is not None:
            if starts is not None:
                raise ValueError("a cache holds one document a row: give each document a row, or use_cache=False")
            hidden = self.model.extend(input_ids, cache, None if padding is None else padding.real)
        elif starts is None:
            hidden = self.model(input_ids)
        else:
            indices = torch.arange(tokens, device=input_ids.device).expand_as(starts)
            hidden = self.model(input_ids, indices - (indices * starts).cummax(dim=1).values, starts.long().cumsum(1))
        return hidden if padding is None else padding.unpack(hidden)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        """Where Hugging Face would make a cache of keys and values for every layer.

        Raises:
            UserError: the longest sequence asked for is beyond the fixed stream.
            ValueError: a kind of cache that there is none of.
        """
        check_length(self.model, length)  # before anything is computed
        wanted = generation_config.cache_implementation
        if model_kwargs.get("past_key_values") is not None or not generation_config.use_cache:
            return super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, length
            )
        if wanted not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation {wanted!r}: this model has dynamic (the default) and static")
        # A growing one without a limit: the next turn of a conversation may continue it.
        static = wanted == "static"
        model_kwargs["past_key_values"] = DeconAttnCache(self.model, length if static else None, static)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, inputs_embeds: Tensor, **_: Any) -> Tensor | None:
        """Of a static cache: the prompt's mask as it is, and none afterwards, whose shape would change every step."""
        return attention_mask if inputs_embeds.shape[1] > 1 else None

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


def _new_columns(mask: Tensor, input_ids: Tensor, cache: DeconAttnCache | None) -> Tensor:
    """The attention mask of the new tokens, bool [B, L]."""
    rows, tokens = input_ids.shape
    lengths = {tokens} if cache is None else {tokens, cache.seen + tokens}
    if mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] not in lengths:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}: give one of input_ids' {(rows, tokens)}")
    return mask[:, -tokens:].bool()


def _document_starts(input_ids: Tensor, position_ids: Tensor | None, padding: Padding | None) -> Tensor | None:
    """bool [B, L], true where a new document begins after a row's first; None where none does."""
    if position_ids is None:
        return None
    position_ids = position_ids.expand_as(input_ids)
    starts = torch.zeros_like(input_ids, dtype=torch.bool)
    if padding is not None:
        position_ids = padding.pack(position_ids)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if padding is not None:
        starts &= padding.real
    return starts if starts.any() else None
