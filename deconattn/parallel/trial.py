"""What the contract of a mixer promises, tried on one layer of a third party's before it trains.

A mixer that looks ahead reaches a loss that no model has, one whose cache is another's writes nonsense, and neither
says a word. Each trial takes milliseconds at the sizes of a laptop and about a second at those of a large model.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import Mixer, MixerContext, mixer_class
from deconattn.model.causal_lm import CausalLM
from deconattn.model.decoding_cache import DecodingCache
from deconattn.model.init import initialize, own_names
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
    """

    def __init__(self, variant: str, config: ModelConfig, tp_size: int = 1) -> None:
        length = min(LENGTH, config.max_position_embeddings)
        self.variant, self.tp_size = variant, tp_size
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
            self._model = CausalLM(self.config)
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
            }
            if self.tp_size > 1:
                trials[f"parts of {self.tp_size} tensor-parallel ranks"] = self._cut
            for attempt in trials.values():
                attempt()
        return list(trials)

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

    def _refuse(self, reason: str) -> None:
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
