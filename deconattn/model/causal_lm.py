"""Language model for training: decoder, head, loss."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.model.decoder import Decoder
from deconattn.ops.cross_entropy import IGNORED, linear_losses
from deconattn.ops.distillation import Taught, linear_divergence


class LossSum(NamedTuple):
    """Sum of the loss in nats, the number of labels (int64 scalar), and [2]: the sum's cross-entropy and z-loss.

    Without the last the sum is cross-entropy alone.
    """

    total: Tensor
    labels: Tensor
    parts: Tensor | None = None


class Objective(Protocol):
    """What a training minimises in the place of the loss on labels."""

    def __call__(
        self,
        model: "CausalLM",
        input_ids: Tensor,
        labels: Tensor,
        documents: tuple[Tensor | None, Tensor | None, Tensor | None],
        run: Callable[..., Tensor] | None,
    ) -> LossSum:
        """Return its sum over tokens and their number; arguments as of :meth:`CausalLM.forward`.

        Args:
            documents: position ids, document ids and offsets.
        """


class Head(Linear):
    """Output head: hidden states to logits, or to the summed loss when labels are given.

    Attributes:
        z_loss: coefficient of the z-loss (:func:`deconattn.ops.cross_entropy.linear_losses`).
    """

    z_loss = 0.0

    def forward(self, hidden: Tensor, labels: Tensor | None = None, taught: Taught | None = None) -> Any:
        """Return logits [.., V] of [.., d]; with int64 labels [..] (-100 ignored), the summed loss and its parts.

        With a teacher's predictions too: the summed divergence from them of tokens that have a label.
        """
        if labels is None:
            return super().forward(hidden)
        if taught is not None:
            taught = taught._replace(hidden=taught.hidden.flatten(0, -2))
            return linear_divergence(hidden.flatten(0, -2), self.weight, labels.flatten(), taught)
        return linear_losses(hidden.flatten(0, -2), self.weight, labels.flatten(), z_loss=self.z_loss)

    def loss(self, hidden: Tensor, labels: Tensor) -> LossSum:
        """Return the loss of [.., d], or of this rank's part of it, and int64 labels [..] (-100 ignored)."""
        total, parts = self(hidden, labels)
        return LossSum(total, (labels != IGNORED).sum(), parts)


class CausalLM(nn.Module):
    """Decoder with head. Parameters have Hugging Face's Qwen2/Qwen3 names: the state dict is the canonical one.

    Args:
        span: the layers to hold, all by default; the head comes with the last.
    """

    def __init__(self, config: ModelConfig, span: range | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, span)
        if self.model.is_last:
            self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the embedding the head, where both are here and the configuration says so."""
        if self.config.tie_word_embeddings and self.model.is_first and self.model.is_last:
            self.lm_head.weight = self.model.embed_tokens.weight

    def canonical_parameters(self) -> dict[str, nn.Parameter]:
        """Return parameters by canonical name; a tied head without its embedding here has the embedding's name."""
        named = dict(self.named_parameters())
        if self.config.tie_word_embeddings and "lm_head.weight" in named:
            named["model.embed_tokens.weight"] = named.pop("lm_head.weight")
        return named

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
        run: Callable[..., Tensor] | None = None,
        objective: Objective | None = None,
    ) -> LossSum:
        """Return the loss; int64 [B, L] each, labels[:, t] is the token that follows input_ids[:, t], or -100.

        Documents as :class:`~deconattn.model.decoder.Decoder` takes them.

        Args:
            run: what runs the decoder, its first argument, in the place of its own `forward`.
            objective: what is minimised in the loss's place.
        """
        if objective is not None:
            return objective(self, input_ids, labels, (position_ids, document_ids, document_offsets), run)
        decoder = self.model if run is None else partial(run, self.model)
        hidden = decoder(input_ids, position_ids, document_ids, document_offsets)
        return self.lm_head.loss(hidden, labels)

    def logits(
        self, input_ids: Tensor, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """Return logits [B, L, vocab_size] of int64 [B, L]."""
        return self.lm_head(self.model(input_ids, position_ids, document_ids))
