"""The stack: embedding, blocks, final norm, and the fixed streams that ride along as extra rows."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deconattn.errors import UserError
from deconattn.mixers import FixedStream, MixerContext, mixer_class
from deconattn.model.block import Block
from deconattn.model.config import ModelConfig
from deconattn.model.rotary import Rotary
from deconattn.ops.documents import Documents


class Decoder(nn.Module):
    """Token ids [B, L] -> hidden states [B, L, hidden_size].

    The fixed stream of `rndemb` and `fixedseq` is appended to the batch after embedding, passes every block
    like data, and is dropped after the last layer that reads it. Buffers, where a layer needs them:
    `fixed_embeddings` [max_position_embeddings, hidden_size] (random) and `fixed_ids` int64
    [max_position_embeddings] (text); :func:`deconattn.model.init.initialize` fills them.
    """

    fixed_embeddings: Tensor
    fixed_ids: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, variant) for variant in config.layer_variants)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.activation_checkpointing = False

        classes = [mixer_class(variant) for variant in config.layer_variants]
        streams = [mixer.fixed_stream for mixer in classes]
        self.streams: list[FixedStream] = sorted({stream for stream in streams if stream is not None})
        self.last_fixed_layer = max((i for i, stream in enumerate(streams) if stream is not None), default=-1)
        self.needs_static_embeddings = any(mixer.needs_static_embeddings for mixer in classes)
        if "random" in self.streams:
            self.register_buffer("fixed_embeddings", torch.zeros(config.max_position_embeddings, config.hidden_size))
        if "text" in self.streams:
            self.register_buffer("fixed_ids", torch.zeros(config.max_position_embeddings, dtype=torch.long))

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """Both or neither of `position_ids` and `document_ids`, int64 [B, L]: mixing stays within a document.

        Raises:
            UserError: L is beyond the fixed stream.
            ValueError: one of the two without the other.
        """
        if (position_ids is None) != (document_ids is None):
            raise ValueError("position_ids and document_ids go together: give both, or neither")
        batch, length = input_ids.shape
        if self.streams and length > self.config.max_position_embeddings:
            raise UserError(
                f"a sequence of {length} tokens is beyond the fixed stream of "
                f"{self.config.max_position_embeddings}: shorten it, or train with a longer --seq-len"
            )
        hidden = self._with_fixed_rows(self.embed_tokens(input_ids))
        context = self._context(hidden, position_ids, document_ids)
        static = hidden if self.needs_static_embeddings else None
        for index, layer in enumerate(self.layers):
            if index == self.last_fixed_layer + 1 and len(hidden) > batch:
                hidden, context = hidden[:batch], context.rows(batch)
                static = None if static is None else static[:batch]
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, static, context, use_reentrant=False)
            else:
                hidden = layer(hidden, static, context)
        return self.norm(hidden[:batch])

    def _with_fixed_rows(self, embeddings: Tensor) -> Tensor:
        length = embeddings.shape[1]
        rows = [embeddings]
        for stream in self.streams:
            if stream == "random":
                rows.append(self.fixed_embeddings[None, :length].to(embeddings.dtype))
            else:
                rows.append(self.embed_tokens(self.fixed_ids[None, :length]))
        return torch.cat(rows) if len(rows) > 1 else embeddings

    def _context(self, hidden: Tensor, position_ids: Tensor | None, document_ids: Tensor | None) -> MixerContext:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        documents = None
        if position_ids is not None and document_ids is not None:
            extra = len(self.streams)  # a fixed stream is one document
            positions = torch.cat([position_ids, positions.expand(extra, -1)])
            documents = Documents(torch.cat([document_ids, torch.zeros_like(positions[:extra])]), positions)
        fixed_rows = {stream: index - len(self.streams) for index, stream in enumerate(self.streams)}
        return MixerContext(Rotary.of(self.config, positions, hidden.dtype), documents, fixed_rows)
