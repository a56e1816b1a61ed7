"""One head of a layer replaced by a variant's: the layer's own output projection reads the one in the other's place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deconattn.analysis.ablation import output_projection
from deconattn.layers.config import ModelConfig
from deconattn.mixers import Mixer, MixerContext, ProjectedMixer, mixer_class
from deconattn.surgery.activations import Activations
from deconattn.surgery.fitting import CLIP, FitSettings, batches_of_steps

Hook = Callable[[nn.Module, tuple[Tensor]], tuple[Tensor] | None]


def has_heads(own: Mixer, config: ModelConfig, variant: str) -> bool:
    """Whether a variant's heads can stand where a mixer's heads are: as wide, and meeting in the output projection."""
    kind = mixer_class(variant)
    replaceable = output_projection(own) is not None and own.fixed_stream is None and not own.needs_static_embeddings
    return replaceable and issubclass(kind, ProjectedMixer) and kind.widths(config)[1] == config.head_dim


class HeadSplice(nn.Module):
    """A layer's own mixer with one head, :attr:`head`, of another mixer's; a mixer's forward pass.

    The other mixer has queries, keys and values of its own for every head, where keys and values are grouped too.
    """

    def __init__(self, own: Mixer, other: Mixer) -> None:
        super().__init__()
        self.own, self.other = own, other
        self.head = 0
        self.fixed_stream, self.needs_static_embeddings = other.fixed_stream, other.needs_static_embeddings

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        size = self.own.config.head_dim
        part = slice(self.head * size, (self.head + 1) * size)
        theirs = mixed_heads(self.other, hidden, static, context)

        def replace(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            mixed = inputs[0][: len(theirs)].clone()
            mixed[..., part] = theirs[..., part]
            return (mixed,)

        with _before_projection(self.own, replace):
            output: Tensor = self.own(hidden, static, context)
        return output

    def fit(
        self,
        activations: Activations,
        settings: FitSettings,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """Fit the other mixer's heads, each to the own head in whose place it is, all at once.

        Grouped keys and values get the gradients of all heads of their group.
        """
        heads = self.own.config.num_attention_heads
        self.other.requires_grad_(True)
        parameters = [parameter for name, parameter in self.other.named_parameters() if not name.startswith("o_proj.")]
        optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=(0.9, 0.95))
        for rows, share in batches_of_steps(settings, len(activations.ids)):
            check()
            optimizer.param_groups[0]["lr"] = settings.lr * share
            inputs = activations.inputs(rows, self.other)
            with torch.no_grad():
                wanted = mixed_heads(self.own, *inputs)[: len(rows)].unflatten(-1, (heads, -1))
            given = mixed_heads(self.other, *inputs)[: len(rows)].unflatten(-1, (heads, -1))
            left, whole = (one.square().mean(dim=(0, 1, 3)) for one in (given - wanted, wanted))
            errors = left / whole.clamp_min(1e-12)
            optimizer.zero_grad(set_to_none=True)
            errors.mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
        self.other.requires_grad_(False)


def mixed_heads(mixer: Mixer, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
    """Return what a mixer's output projection reads, [R, L, heads * head_dim]."""
    entered: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
        entered.append(inputs[0])

    with _before_projection(mixer, keep):
        mixer(hidden, static, context)
    return entered[0]


@contextmanager
def _before_projection(mixer: Mixer, hook: Hook) -> Iterator[None]:
    projection = output_projection(mixer)
    assert projection is not None, "has_heads was asked first"
    handle = projection.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
