"""The model that is operated on: its layers, its head, its text, and the fixed streams that a replacement may read."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deconattn.analysis.sample import Sample
from deconattn.analysis.tokens import read_sample
from deconattn.checkpoint.stored_model import StoredModel
from deconattn.config.pattern import check_variant
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import FixedStream, Mixer, MixerContext, known_names, mixer_class
from deconattn.model.causal_lm import CausalLM
from deconattn.model.decoder import Decoder
from deconattn.model.init import initialize
from deconattn.model.streams import Streams
from deconattn.surgery.request import Request

STREAM_BUFFERS: dict[FixedStream, str] = {"random": "model.fixed_embeddings", "text": "model.fixed_ids"}
"""Names of the fixed streams in a state dict."""
_HASHED = 1024
"""Elements of each parameter that tell models apart."""


@dataclass(frozen=True)
class Subject:
    """A model and its text.

    Attributes:
        config: its configuration, for sequences of the text's length.
        streams: of each fixed stream that it or a variant reads, what the state dict has: embeddings fp32 [L, d]
            (random) or ids int64 [L] (text).
        fit, held_out, tested: ids, int64 [N, L] each.
    """

    label: str
    config: ModelConfig
    decoder: Decoder
    head: nn.Module
    streams: Mapping[FixedStream, Tensor]
    fit: Tensor
    held_out: Tensor
    tested: Tensor

    @property
    def depth(self) -> int:
        return self.config.num_hidden_layers

    @property
    def length(self) -> int:
        return self.fit.shape[1]

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Embed int64 [B, L]: [B, L, d]."""
        embedded: Tensor = self.decoder.embed_tokens(ids.to(self.device))
        return embedded

    def stream_rows(self, names: Iterable[FixedStream]) -> Tensor:
        """Return the embeddings of fixed streams, [S, L, d], in this order."""
        rows = [self.embed(self.streams[name]) if name == "text" else self.streams[name] for name in names]
        like = self.decoder.embed_tokens.weight
        return torch.stack([row.to(like) for row in rows]) if rows else like.new_empty(0, self.length, like.shape[1])

    def context(self, streams: Sequence[FixedStream], output_rows: int | None = None) -> MixerContext:
        """Return the context of rows whose last are these streams."""
        like = self.decoder.embed_tokens.weight
        positions = torch.arange(self.length, device=like.device)[None]
        rotary = Rotary.of(self.decoder.model_config, positions, like.dtype)
        fixed_rows = {name: place - len(streams) for place, name in enumerate(streams)}
        return MixerContext(rotary, None, fixed_rows, output_rows)

    def fingerprint(self) -> str:
        """Return a digest of the weights' beginnings and of the text: equal where results go together."""
        digest = hashlib.sha256()
        for parameter in self.decoder.parameters():
            digest.update(parameter.detach().flatten()[:_HASHED].float().cpu().numpy().tobytes())
        for ids in (self.fit, self.held_out, self.tested):
            digest.update(ids.numpy().tobytes())
        return digest.hexdigest()[:16]

    def fresh_mixer(self, layer: int, variant: str, seed: int) -> Mixer:
        """Build a variant for a layer as a run's first step has it, but for what the layer's own mixer shares with it.

        Shared is what has a tensor's name and shape, as in an import (:mod:`deconattn.convert.graft`).
        """
        variants = tuple(variant if place == layer else "standard" for place in range(self.depth))
        # Neither table is wanted: weights depend on their names alone.
        config = replace(self.config, layer_variants=variants, vocab_size=1, tie_word_embeddings=False)
        model = CausalLM(config, range(layer, layer + 1))
        initialize(model, seed, torch.zeros(self.length, dtype=torch.long))
        block = model.model.blocks[0]
        mixer: Mixer = block.self_attn.to(self.device)
        own = dict(self.mixer(layer).named_parameters())
        with torch.no_grad():
            for name, parameter in mixer.named_parameters():
                if name in own and own[name].shape == parameter.shape:
                    parameter.copy_(own[name])
        return mixer

    def mixer(self, layer: int) -> Mixer:
        """Return a layer's own mixer."""
        mixer: Mixer = self.decoder.blocks[layer].self_attn
        return mixer

    def with_mixers(self, mixers: Mapping[int, nn.Module], names: Mapping[int, str], span: range) -> Decoder:
        """Return layers of the model with other mixers in the place of some; all else is the model's own modules.

        Args:
            names: the variants of the mixers.
            span: the layers wanted, which end with the last.
        """
        variants = tuple(names.get(place, own) for place, own in enumerate(self.config.layer_variants))
        with torch.device("meta"):
            part = Decoder(replace(self.config, layer_variants=variants), span)
        for layer in span:
            if layer in mixers:
                block, own = part.layers[layer], self.decoder.blocks[layer]
                for name, module in own.named_children():
                    setattr(block, name, mixers[layer] if name == "self_attn" else module)
            else:
                part.layers[layer] = self.decoder.blocks[layer]
        part.norm = self.decoder.norm
        return part.eval()


def open_subject(stored: StoredModel, request: Request) -> Subject:
    """Read a model's weights and its text.

    Raises:
        UserError: a variant that nobody knows, a length that the model cannot take, or too little text.
    """
    config = stored.model_config
    for name in request.variants:
        check_variant(name, known_names())
    sample = Sample(request.data, request.text, request.sequences, request.seq_len)
    try:
        [ids] = read_sample(sample, [stored])
    except UserError as error:
        # The sample's own flag for the number of sequences is three flags here.
        ours = "--fit-sequences, --held-out, --tested"
        told = str(error).replace(f"--sequences {request.sequences}", ours).replace("--sequences", ours)
        raise UserError(told) from None
    decoder, head = stored.decoder_and_head()
    decoder.requires_grad_(False)
    head.requires_grad_(False)
    fit, held_out, tested = ids.split([request.fit_sequences, request.held_out, request.tested])
    config = replace(config, max_position_embeddings=request.seq_len)
    streams = _streams(decoder, config, request, fit[0])
    return Subject(stored.label, config, decoder, head, streams, fit, held_out, tested)


def _streams(decoder: Decoder, config: ModelConfig, request: Request, text: Tensor) -> dict[FixedStream, Tensor]:
    """Return each stream that is read: the model's own, or as a run begins with it, the text being a sequence's."""
    wanted = Streams.of((*config.layer_variants, *request.variants)).fixed
    found: dict[FixedStream, Tensor] = {}
    for name in wanted:
        if name in decoder.streams:
            buffer = decoder.fixed_embeddings if name == "random" else decoder.fixed_ids
            found[name] = buffer[: request.seq_len].cpu()
        elif name == "text":
            found[name] = text.clone()
        else:
            reader = next(one for one in request.variants if mixer_class(one).fixed_stream == name)
            small = replace(config, layer_variants=(reader,) * config.num_hidden_layers, vocab_size=1)
            model = CausalLM(replace(small, tie_word_embeddings=False, num_hidden_layers=1, layer_variants=(reader,)))
            initialize(model, request.seed)
            found[name] = model.model.fixed_embeddings.detach().clone()
    return found
