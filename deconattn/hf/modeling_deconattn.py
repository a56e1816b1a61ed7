"""Model classes for Hugging Face: the decoder and head of training under Hugging Face's calling convention."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from deconattn.errors import UserError
from deconattn.hf.cache_deconattn import DeconAttnCache
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.layers.linear import Linear
from deconattn.mixers import MixerContext, unknown_names
from deconattn.model.block import Block
from deconattn.model.decoder import Decoder
from deconattn.model.padding import Padding
from deconattn.model.streams import check_length

CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else ("past_key_values")
)
"""Name of the cache argument and output in this version of transformers; 5.24 renamed it."""
IGNORED = -100
"""Label of a token that does not count in the loss."""


class DeconAttnPreTrainedModel(PreTrainedModel):
    """Base class of our models: what they support of Hugging Face's features."""

    config: DeconAttnConfig
    config_class = DeconAttnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `num_items_in_batch`
    _no_split_modules = ["Block"]  # noqa: RUF012  (Hugging Face's declaration)
    # Automatic placement on several devices forgets a module's own buffers, and then misses them, but where some tensor
    # may go without a place. The fixed streams' stay on the CPU and are brought where the embeddings are.
    _no_placement_params = frozenset[str]()
    _supports_sdpa = True  # the ops choose the implementation themselves; this accepts Hugging Face's default

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return False

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """Return False: no attention function of a serving engine can replace ours."""
        return False

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Decoder):
            if "random" in module.streams:
                initialization.normal_(module.fixed_embeddings, mean=0.0, std=self.config.initializer_range)
            if "text" in module.streams:
                initialization.zeros_(module.fixed_ids)  # there is no text to be had here: weights bring it

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Resize embedding and head as transformers does.

        Raises:
            UserError: the fixed text has a token that would lose its embedding.
        """
        decoder = self.base_model
        longest = int(decoder.fixed_ids.max()) if "text" in decoder.streams else -1
        if new_num_tokens is not None and new_num_tokens <= longest:
            raise UserError(f"the model's fixed text has token {longest}: keep {longest + 1} embeddings or more")
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        decoder.model_config = replace(decoder.model_config, vocab_size=self.config.vocab_size)
        return embeddings

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        for module in self.modules():
            if isinstance(module, Decoder):
                module.activation_checkpointing = enable


class DeconAttnModel(Decoder, DeconAttnPreTrainedModel):
    """Decoder without the head: token ids or embeddings to hidden states.

    Raises:
        UserError: a layer's variant is not registered.
    """

    def __init__(self, config: DeconAttnConfig) -> None:
        unknown = unknown_names(config.layer_variants or ())
        if unknown:
            raise UserError(f"variant {unknown[0]!r} is not registered: load the plugin file that registers it first")
        DeconAttnPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.build(config.to_model_config(), None)
        self.post_init()  # type: ignore[operator]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DeconAttnCache | None = None,
        past_key_values: DeconAttnCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | Tensor | None = None,
        max_length_k: int | Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Return hidden states [B, L, hidden_size] after the final norm.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], or with a cache [B, tokens seen + L] (or L): zero at padding, which may be anywhere
                and counts for nothing. A single token that continues a cache is taken for a real one.
            position_ids: int64 [B or 1, L]; where they do not go up by one a new document begins, and mixing
                does not cross it. Positions are counted from each document's first token whatever they say.
            cache: tokens before these, which the call adds these to.
            past_key_values: its name in transformers before 5.24.
            inputs_embeds: [B, L, hidden_size] in the place of `input_ids`; `staticemb` layers read them, too.
            use_cache: return a cache; by default only one that was given. No gradient flows through it.
            output_attentions: return each layer's map [B, heads, L, L], None of a layer that mixes nothing. The whole
                map is computed by its formula, beside the model's own way.
            output_hidden_states: return the embeddings and what each layer makes of them, the last one normed.
            cu_seq_lens_q: int32 [documents + 1], where the documents of a batch of one row begin, and the end: another
                way to say what position_ids say, which are believed where both are given.
            cu_seq_lens_k: the same again, as collators for flash attention give it with the longest document's length.
            max_length_q: that length, which nothing here needs.
            max_length_k: the same again.
            seq_idx: int [B, L], the number of each token's document: a third way.

        Raises:
            UserError: the sequence is beyond the fixed stream or the cache.
            ValueError: arguments that contradict one another, a mask of another shape, another model's cache, an empty
                one for tokens that are not the first, or one for rows of several documents.
        """
        cache = _one_cache(cache, past_key_values)
        if position_ids is None:
            position_ids = _positions(cu_seq_lens_q, seq_idx)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if cache is None and use_cache:
            cache = DeconAttnCache(self)
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        watched = _Watched(
            hidden.shape[0],
            _asked(output_hidden_states, self.config.output_hidden_states),
            _asked(output_attentions, self.config.output_attentions),
        )
        if watched.wants_maps and cache is not None:
            raise ValueError("output_attentions needs the whole sequence at once: give use_cache=False")
        padding = None
        if cache is not None and not cache.is_empty and hidden.shape[1] == 1:
            hidden = self.extend_embedded(hidden, cache, None, watched)
        else:
            padding = None if attention_mask is None else Padding.of(_new_columns(attention_mask, hidden, cache))
            hidden = self._first_pass(hidden, padding, position_ids, cache, watched)
        if padding is not None:
            hidden = padding.unpack(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=watched.all_hidden(hidden, padding),
            attentions=watched.all_maps(padding),
            **{CACHE: cache},
        )

    def _first_pass(
        self,
        hidden: Tensor,
        padding: Padding | None,
        position_ids: Tensor | None,
        cache: DeconAttnCache | None,
        watched: "_Watched",
    ) -> Tensor:
        """Run a pass of several tokens or with none cached: [B, L, d] in the caller's columns -> in packed ones."""
        rows, tokens = hidden.shape[:2]
        if padding is not None:
            hidden = padding.pack(hidden)
        if position_ids is not None:
            position_ids = position_ids.expand(rows, tokens)
            position_ids = position_ids if padding is None else padding.pack(position_ids)
        starts = _document_starts(position_ids, padding)
        if cache is not None:
            if starts is not None:
                raise ValueError("a cache holds one document a row: give each document a row, or use_cache=False")
            if cache.is_empty and position_ids is not None and _later(position_ids, padding):
                raise ValueError("the cache is empty, but position_ids are not a beginning's: tokens were lost")
            return self.extend_embedded(hidden, cache, None if padding is None else padding.real, watched)
        if starts is None:
            return self.forward_embedded(hidden, tokens, observe=watched)
        indices = torch.arange(tokens, device=hidden.device).expand_as(starts)
        positions = indices - (indices * starts).cummax(dim=1).values
        return self.forward_embedded(hidden, tokens, positions, starts.long().cumsum(1), watched)


class DeconAttnForCausalLM(DeconAttnPreTrainedModel, GenerationMixin):
    """Decoder with head, its state dict as :class:`deconattn.model.causal_lm.CausalLM`'s, buffers included.

    `generate` keeps of each layer what its variant needs (:class:`DeconAttnCache`); `cache_implementation="static"`
    gives tensors of constant shape, for torch.compile.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (Hugging Face's declaration)

    def __init__(self, config: DeconAttnConfig) -> None:
        super().__init__(config)
        self.model = DeconAttnModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DeconAttnCache | None = None,
        past_key_values: DeconAttnCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | Tensor | None = None,
        max_length_k: int | Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Return logits [B, kept, vocab_size] and, with labels, the mean loss; see :meth:`DeconAttnModel.forward`.

        Args:
            labels: int64 [B, L], the inputs' own ids (shifted here), -100 where ignored.
            logits_to_keep: only the last so many positions' logits (0: all), or the positions' indices.
            num_items_in_batch: what the summed loss is divided by instead of the number of labels
                (gradient accumulation).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=_one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cu_seq_lens_q=cu_seq_lens_q,
            seq_idx=seq_idx,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss = None
        if labels is None:
            logits = self.lm_head(hidden[:, kept])
        else:
            logits = self.lm_head(hidden)
            targets = labels[:, 1:].to(logits.device)
            scores = logits[:, :-1].float() if logits.dtype in (torch.bfloat16, torch.float16) else logits[:, :-1]
            loss = cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
            loss = loss / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
            logits = logits[:, kept]
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    def _prepare_generated_length(
        self,
        generation_config: Any,
        has_default_max_length: bool,
        has_default_min_length: bool,
        model_input_name: str,
        input_ids_length: int,
        inputs_tensor: Tensor,
    ) -> Any:
        """Set the length as transformers does; one that nobody asked for ends with the fixed stream."""
        prepared = super()._prepare_generated_length(
            generation_config,
            has_default_max_length,
            has_default_min_length,
            model_input_name,
            input_ids_length,
            inputs_tensor,
        )
        if has_default_max_length and prepared.max_new_tokens is None and self.model.streams:
            # Embeddings without ids are not part of the length that transformers counts.
            uncounted = inputs_tensor.shape[1] - input_ids_length if model_input_name == "inputs_embeds" else 0
            prepared.max_length = min(prepared.max_length, self.config.max_position_embeddings - uncounted)
        return prepared

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        """Make a :class:`DeconAttnCache` where Hugging Face would make a key/value cache.

        Raises:
            UserError: the longest sequence asked for is beyond the fixed stream.
            ValueError: a kind of cache that there is none of.
        """
        check_length(self.model, length)  # before anything is computed
        wanted = generation_config.cache_implementation
        given = _one_cache(model_kwargs.pop("cache", None), model_kwargs.pop("past_key_values", None))
        if given is not None:
            model_kwargs[CACHE] = given
        if given is not None or not generation_config.use_cache:
            return super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, length
            )
        if wanted not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation {wanted!r}: this model has dynamic (the default) and static")
        # A growing one without a limit: the next turn of a conversation may continue it.
        static = wanted == "static"
        model_kwargs[CACHE] = DeconAttnCache(self.model, length if static else None, static)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, inputs_embeds: Tensor, **_: Any) -> Tensor | None:
        """Return the prompt's mask for a static cache, and none afterwards: its shape would change every step."""
        return attention_mask if inputs_embeds.shape[1] > 1 else None


class _Watched:
    """Observer that collects what `output_hidden_states` and `output_attentions` ask for."""

    def __init__(self, rows: int, wants_hidden: bool, wants_maps: bool) -> None:
        self.wants_maps = wants_maps
        self._rows, self._wants_hidden = rows, wants_hidden
        self._hidden: list[Tensor] = []
        self._maps: list[Tensor | None] = []

    def __call__(self, layer: Block, hidden: Tensor, static: Tensor | None, context: MixerContext | None) -> None:
        if self._wants_hidden:
            self._hidden.append(hidden[: self._rows])
        if self.wants_maps:
            assert context is not None, "a cached pass has no maps"
            device = layer.input_layernorm.weight.device
            if device.type != "meta":  # offloaded, and brought where its inputs are
                static = None if static is None else static.to(device)
                hidden, context = hidden.to(device), context.to(device)
            whole = layer.self_attn.attention_map(*layer.mixer_inputs(hidden, static)[1:], context)
            self._maps.append(None if whole is None else whole[: self._rows])

    def all_hidden(self, last: Tensor, padding: Padding | None) -> tuple[Tensor, ...] | None:
        """Return embeddings, every layer's output but the last one's, and `last`; in the caller's columns."""
        if not self._wants_hidden:
            return None
        return (*(hidden if padding is None else padding.unpack(hidden) for hidden in self._hidden), last)

    def all_maps(self, padding: Padding | None) -> tuple[Tensor | None, ...] | None:
        if not self.wants_maps:
            return None
        return tuple(whole if whole is None or padding is None else padding.unpack_map(whole) for whole in self._maps)


def _asked(given: bool | None, default: bool | None) -> bool:
    return bool(default if given is None else given)


def _one_cache(cache: Any, past_key_values: Any) -> DeconAttnCache | None:
    """Return the cache, under whichever name it was passed."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are one argument under two names: give one of them")
    cache = past_key_values if cache is None else cache
    if cache is not None and not isinstance(cache, DeconAttnCache):
        raise ValueError(f"the cache is a {type(cache).__name__}: give a DeconAttnCache, or leave it out")
    return cache


def _new_columns(mask: Tensor, hidden: Tensor, cache: DeconAttnCache | None) -> Tensor:
    """Return the attention mask of the new tokens, bool [B, L]."""
    rows, tokens = hidden.shape[:2]
    lengths = {tokens} if cache is None else {tokens, cache.seen + tokens}
    if mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] not in lengths:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}: give one of the tokens' {(rows, tokens)}")
    return mask[:, -tokens:].bool()


def _positions(offsets: Tensor | None, documents: Tensor | None) -> Tensor | None:
    """Return positions, int64 [B, L], from documents' bounds or from each token's document, if either is given."""
    if offsets is not None:
        documents = torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())[None]
    if documents is None:
        return None
    tokens = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.zeros_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents.diff(dim=1) != 0
    return tokens - (tokens * begins).cummax(dim=1).values


def _document_starts(position_ids: Tensor | None, padding: Padding | None) -> Tensor | None:
    """Return where a document begins after a row's first, bool [B, L]; None where none does. All packed."""
    if position_ids is None:
        return None
    starts = torch.zeros_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if padding is not None:
        starts &= padding.real
    return starts if starts.any() else None


def _later(position_ids: Tensor, padding: Padding | None) -> bool:
    """Whether a row's first token says that others come before it."""
    first = position_ids[:, 0] > 0
    return bool((first if padding is None else first & padding.real[:, 0]).any())
