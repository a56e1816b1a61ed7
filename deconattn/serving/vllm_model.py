"""Model classes for vLLM: the decoder on vLLM's layers, attention and key/value cache.

`staticemb` needs the token embeddings at every layer: a third tensor beside vLLM's hidden states and residual stream.
`rndemb` and `fixedseq` have queries and keys that depend on the position alone: the fixed stream passes the layers
once after the weights are loaded, and each layer then looks its queries and keys up. `mlp` has no attention, and vLLM
keeps a cache only for layers that have.

Run with vLLM 0.32 on CPUs; never on a GPU (docs/serving.md).
"""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    extract_layer_index,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors
from vllm.transformers_utils.config import set_default_rope_theta

from deconattn.errors import UserError
from deconattn.mixers import FixedStream
from deconattn.model.streams import Streams
from deconattn.serving.vllm_layers import MIXERS, VllmDecoderLayer, VllmFeedForward
from deconattn.serving.vllm_plugin import check


@support_torch_compile
class DeconAttnModel(nn.Module):
    """Decoder without the head: token ids [T] and their positions to hidden states [T, hidden_size]."""

    fixed_embeddings: Tensor
    fixed_ids: Tensor

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        hf_config = vllm_config.model_config.hf_config
        set_default_rope_theta(hf_config, hf_config.rope_theta)
        config = self.config = hf_config.to_model_config()
        self.max_model_len = vllm_config.model_config.max_model_len
        group = get_pp_group()
        if group.is_first_rank or (config.tie_word_embeddings and group.is_last_rank):
            self.embed_tokens = VocabParallelEmbedding(
                config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "embed_tokens")
            )
        else:
            self.embed_tokens = PPMissingLayer()
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: VllmDecoderLayer(
                config, vllm_config, config.layer_variants[extract_layer_index(prefix)], prefix
            ),
            prefix=maybe_prefix(prefix, "layers"),
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if group.is_last_rank else PPMissingLayer()

        streams = Streams.of(config.layer_variants)
        self.has_static = bool(streams.static_layers)
        keys = ["hidden_states", "residual", *(["static"] if self.has_static else [])]
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(keys, config.hidden_size)

        here = {layer.fixed_stream for layer in self._layers}
        fixed = [stream for stream in streams.fixed if stream in here]
        self.fixed_rows: dict[FixedStream, int] = {stream: row for row, stream in enumerate(fixed)}
        length = config.max_position_embeddings
        if "random" in fixed:
            self.register_buffer("fixed_embeddings", torch.zeros(length, config.hidden_size))
        if "text" in fixed:
            self.register_buffer("fixed_ids", torch.zeros(length, dtype=torch.long))

    @property
    def _layers(self) -> Iterable[VllmDecoderLayer]:
        """Layers of this pipeline stage."""
        return islice(self.layers, self.start_layer, self.end_layer)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embed tokens: [T] -> [T, d]."""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Run the layers; annotated for vLLM's compiler: every tensor's first dimension is the number of tokens."""
        residual = static = None
        if get_pp_group().is_first_rank:
            if inputs_embeds is None:
                assert input_ids is not None
                inputs_embeds = self.embed_input_ids(input_ids)
            hidden = inputs_embeds
            if self.has_static:
                static = hidden.clone()  # the first layer's residual stream is the embeddings, and is added to in place
        else:
            assert intermediate_tensors is not None
            hidden, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
            static = intermediate_tensors["static"] if self.has_static else None
        for layer in self._layers:
            hidden, residual = layer(positions, hidden, residual, static)
        if get_pp_group().is_last_rank:
            return self.norm(hidden, residual)[0]
        passed = {"hidden_states": hidden, "residual": residual}
        return IntermediateTensors(passed | ({"static": static} if self.has_static else {}))

    @torch.no_grad()
    def run_fixed_streams(self) -> None:
        """Fill the tables of the fixed maps, if there are any."""
        if not self.fixed_rows:
            return
        length = self.max_model_len
        rows = [
            self.fixed_embeddings[:length] if stream == "random" else self.embed_input_ids(self.fixed_ids[:length])
            for stream in self.fixed_rows
        ]
        hidden = torch.cat(rows)
        static = hidden if self.has_static else None
        positions = torch.arange(length, device=hidden.device).repeat(len(rows))
        layers = list(self._layers)
        last = max(index for index, layer in enumerate(layers) if layer.fixed_stream is not None)
        for layer in layers[: last + 1]:
            hidden = layer.run_stream(positions, hidden, static, self.fixed_rows)


class DeconAttnForCausalLM(nn.Module, SupportsPP):
    """Model class in vLLM's registry under our exports' architecture.

    Raises:
        UserError: see :func:`deconattn.serving.vllm_plugin.check`.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check(vllm_config)
        self.model = DeconAttnModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        config = self.config = self.model.config
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        else:
            self.lm_head = PPMissingLayer()
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        self._is_loaded = False

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embed tokens: [T] -> [T, d]."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """Return hidden states [T, d] of tokens [T], or what the next pipeline stage needs."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Compute logits: [N, d] -> [N, vocab_size], on the ranks that vLLM samples on."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the tensors of an export by their names there; return vLLM's names of them.

        Again once the engine runs, as a trainer does that generates with it: what the fixed maps look up follows.

        Raises:
            UserError: an export without its fixed stream, or vLLM's layer-by-layer reload of a model that has one.
        """
        loaded = AutoWeightsLoader(self).load_weights(
            weights, mapper=WeightsMapper(orig_to_new_stacked=self._stacked())
        )
        if not self._is_loaded:
            missing = sorted({f"model.{name}" for name, _ in self.model.named_buffers(recurse=False)} - loaded)
            if missing:
                raise UserError(f"the export has no tensor {missing[0]}: export the model again")
        elif self.model.fixed_rows:
            # Such a reload fills the last tensors only after this method, and tells the model nothing then.
            if any(tensor.is_meta for tensor in (*self.parameters(), *self.buffers())):
                raise UserError("the weights of a model with a fixed stream cannot be reloaded: start a new engine")
            self.model.run_fixed_streams()
        return loaded

    def process_weights_after_loading(self) -> None:
        """Fill the fixed maps' tables; vLLM calls this once all weights are loaded, dummy ones included."""
        self.model.run_fixed_streams()
        self._is_loaded = True

    def _stacked(self) -> dict[str, tuple[str, str | int]]:
        """Return vLLM's fused layer and part for each layer of a checkpoint, by the variants of the blocks."""
        return {
            f"layers.{index}.{module}.{ours}.": (f"layers.{index}.{module}.{theirs}.", part)
            for index, variant in enumerate(self.config.layer_variants)
            for module, stacked in (("self_attn", MIXERS[variant].stacked), ("mlp", VllmFeedForward.stacked))
            for ours, (theirs, part) in stacked.items()
        }
