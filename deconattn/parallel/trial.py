"""What the contract of a mixer promises, tried on one layer before it trains.

A mixer that looks ahead reaches a loss that no model has, one whose cache is another's writes nonsense, and neither
says a word. Each trial takes milliseconds at the sizes of a laptop and about a second at those of a large model.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import Mixer, MixerContext, Workload, mixer_class
from deconattn.model.causal_lm import CausalLM
from deconattn.model.decoding_cache import DecodingCache
from deconattn.model.init import initialize, own_names
from deconattn.ops.documents import Documents
from deconattn.parallel.tensor import cut_tensors

LENGTH, VOCABULARY = 16, 64
PIECES = (5, 1, 1, 8, 1)
"""How many tokens enter the cache at a time."""
TOLERANCE = 1e-3
"""Of the largest number; what fp32 rounds is some 1e-6 of it."""


class Trial:
    """One variant in a model of one layer, small but for what a mixer sees.

    Args:
        variant: a registered name.
        config: the model that it is to be a part of.
        tp_size: tensor-parallel ranks that it is to be cut for.
        doc_mask: rows are to hold several documents.
    """

    def __init__(self, variant: str, config: ModelConfig, tp_size: int = 1, doc_mask: bool = False) -> None:
        length = min(LENGTH, config.max_position_embeddings)
        self.variant, self.tp_size, self.doc_mask = variant, tp_size, doc_mask
        self.config = replace(
            config,
            layer_variants=(variant,),
            num_hidden_layers=1,
            vocab_size=VOCABULARY,
            intermediate_size=8,
            max_position_embeddings=length,
        )

    def run(self) -> list[str]:
        """Names of what was tried.

        Raises:
            UserError: the first promise that is not kept.
        """
        own_names(mixer_class(self.variant), self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._model = CausalLM(self.config).eval()  # with dropout no two passes would agree
            initialize(self._model, 0, torch.arange(self.config.max_position_embeddings) % VOCABULARY)
            with torch.no_grad():
                for parameter in self._model.parameters():  # nothing at a special value
                    parameter.add_(0.05 * torch.randn(parameter.shape))
            self._mixer: Mixer = self._model.model.layers[0].self_attn  # type: ignore[assignment]
            # The last two rows are the fixed streams'.
            self._hidden = torch.randn(4, self.config.max_position_embeddings, self.config.hidden_size)
            self._static = torch.randn_like(self._hidden) if self._mixer.needs_static_embeddings else None
            trials: dict[str, Callable[[], None]] = {
                "parameters as counted": self._parameters,
                "causality": self._causality,
                "gradients": self._gradients,
                "decoding as the whole pass": self._decoding,
                "map": self._map,
            }
            if self.doc_mask:
                trials["documents apart"] = self._documents
            if self.tp_size > 1:
                trials[f"parts of {self.tp_size} tensor-parallel ranks"] = self._cut
            for attempt in trials.values():
                attempt()
        return list(trials)

    def figures(self) -> str:
        """What the class claims beside what one layer of 4 rows takes, in a line; after :meth:`run`."""
        mixer, work = type(self._mixer), Workload(len(self._hidden), self._hidden.shape[1])
        standard = mixer_class("standard").num_parameters(self.config)
        parameters = mixer.num_parameters(self.config)
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        counter, context = FlopCounterMode(display=False), self._context
        hidden = self._hidden.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = self._mixer(hidden, self._static, context)
        for tensor in (*self._mixer.parameters(), context.rotary.cos, context.rotary.sin):
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        del output
        with counter, torch.no_grad():
            self._mixer(hidden, self._static, context)
        return (
            f"{parameters:,} parameters, {parameters / standard - 1:+.2%} of standard's; "
            f"{mixer.forward_flops(self.config, work):,} FLOPs claimed, {counter.get_total_flops():,} counted; "
            f"{mixer.activation_bytes(self.config, work):,} bytes saved for backward claimed, "
            f"{sum(kept.values()):,} measured"
        )

    def _parameters(self) -> None:
        claimed = type(self._mixer).num_parameters(self.config)
        measured = sum(parameter.numel() for parameter in self._mixer.parameters())
        if claimed != measured:
            self._refuse(f"num_parameters says {claimed:,} for a layer that has {measured:,}: correct it")

    def _causality(self) -> None:
        whole = self._mixed(self._hidden, self._static)
        if whole.shape != self._hidden.shape:
            self._refuse(f"forward gives {tuple(whole.shape)} for {tuple(self._hidden.shape)}")
        if not whole.isfinite().all():
            self._refuse("forward gives numbers that are not finite")
        for position in range(1, self._hidden.shape[1]):
            later = [None if tensor is None else tensor.clone() for tensor in (self._hidden, self._static)]
            for tensor in later:
                if tensor is not None:
                    tensor[:2, position:] += 1
            changed = self._mixed(*later)[:2, :position]  # type: ignore[arg-type]
            if _differ(changed, whole[:2, :position]):
                self._refuse(f"outputs before token {position} change with token {position}: it reads what follows")

    def _gradients(self) -> None:
        hidden = self._hidden.clone().requires_grad_()
        mixed = self._mixer(hidden, self._static, self._context)
        wanted = [hidden, *self._mixer.parameters()]
        for gradient in torch.autograd.grad(mixed.square().sum(), wanted, allow_unused=True):
            if gradient is not None and not gradient.isfinite().all():
                self._refuse("a gradient is not finite")

    def _decoding(self) -> None:
        ids = torch.randint(VOCABULARY, (2, self.config.max_position_embeddings))
        self._model.eval()
        cache = DecodingCache(self._model.model)
        with torch.no_grad():
            whole = self._model.logits(ids)
            hidden = [self._model.model.extend(piece, cache) for piece in ids.split(_pieces(ids.shape[1]), dim=1)]
            steps = self._model.lm_head(torch.cat(hidden, dim=1))
        if _differ(steps, whole):
            self._refuse("tokens that are decoded with the cache get other logits than in the whole sequence")

    @torch.no_grad()
    def _map(self) -> None:
        arguments = self._hidden, self._static, self._context
        whole = self._mixer.attention_map(*arguments)
        blocks = [*self._mixer.map_blocks(*arguments, 5)]
        if whole is None and not blocks:
            return
        length = self._hidden.shape[1]
        if whole is None or whole.shape[-2:] != (length, length):
            self._refuse(f"attention_map is no [R, heads, {length}, {length}]")
        if not whole.isfinite().all() or whole.triu(1).any():
            self._refuse("attention_map is not causal and finite")
        joined = torch.cat([pad(block.weights, (0, length - block.stop)) for block in blocks], dim=-2)
        if _differ(joined, whole):
            self._refuse("map_blocks are not the rows of attention_map")

    def _documents(self) -> None:
        ids = torch.zeros(self._hidden.shape[:2], dtype=torch.long)
        ids[:2, 7:] = 1
        positions = torch.arange(ids.shape[1]).expand(len(ids), -1).clone()
        positions[:2, 7:] -= 7
        rotary = Rotary.of(self.config, positions, torch.float32)
        packed = replace(self._context, rotary=rotary, documents=Documents(ids, positions))
        changed = [None if tensor is None else tensor.clone() for tensor in (self._hidden, self._static)]
        for tensor in changed:
            if tensor is not None:
                tensor[:2, :7] += 1
        with torch.no_grad():
            before = self._mixer(self._hidden, self._static, packed)[:2, 7:]
            after = self._mixer(*changed, packed)[:2, 7:]
        if _differ(after, before):
            self._refuse("it mixes over document boundaries: look at context.document_ids, or train without --doc-mask")

    def _cut(self) -> None:
        whole = self._mixed(self._hidden, self._static)[:2]
        remedy = "name in `splits` what belongs to some heads, or use --tp 1"
        try:
            parts = [self._part(rank) for rank in range(self.tp_size)]
            total = torch.stack([self._mixed(self._hidden, self._static, part)[:2] for part in parts]).sum(0)
        except Exception as error:
            self._refuse(f"cannot be cut for --tp {self.tp_size} ({type(error).__name__}: {error}): {remedy}")
        if total.shape != whole.shape or _differ(total, whole):
            self._refuse(f"the parts of --tp {self.tp_size} do not sum to the whole: {remedy}")

    def _part(self, rank: int) -> Mixer:
        part = deepcopy(self._mixer)
        values = {(id(owner), name): tensor for owner, name, tensor in _tensors(part)}
        with torch.no_grad():
            for owner, name, shard in cut_tensors(part, self.config, rank, self.tp_size):
                getattr(owner, name).copy_(shard.take(values[id(owner), name]))
        return part

    @property
    def _context(self) -> MixerContext:
        positions = torch.arange(self._hidden.shape[1])[None]
        return MixerContext(Rotary.of(self.config, positions, torch.float32), None, {"random": -2, "text": -1})

    @torch.no_grad()
    def _mixed(self, hidden: Tensor, static: Tensor | None, mixer: Mixer | None = None) -> Tensor:
        mixed: Tensor = (mixer or self._mixer)(hidden, static, self._context)
        return mixed

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"variant {self.variant!r}: {reason}")


def _pieces(length: int) -> list[int]:
    return list(PIECES) if length == sum(PIECES) else [1] * length


def _differ(one: Tensor, other: Tensor) -> bool:
    return not (one - other).abs().max() <= TOLERANCE * other.abs().max()


def _tensors(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (owner, name, tensor)
        for owner in module.modules()
        for name, tensor in [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
    ]
