"""Loss and gradients of a slice of tokens at a linear head, in buffers that all slices share.

On a CPU logits are held in fp32, and made log-probabilities, probabilities and gradients by operations in place. On a
GPU they stay in the hidden states' dtype, and two passes (:mod:`deconattn.ops.logits`) make gradients of them.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.ops.logits import NOWHERE, gradients_, log_normalisers, padded
from deconattn.ops.matmul import ignores_out, matmul


class VocabularyRanks(Protocol):
    """The ranks among which the head's rows are shared out."""

    @property
    def first_id(self) -> int:
        """The token id of this rank's first row."""

    @property
    def most_rows(self) -> int:
        """Largest number of head rows on any rank."""

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers; a collective call."""

    def log_normaliser(self, local: Tensor) -> Tensor:
        """log sum exp over the whole vocabulary from each rank's, [n] each; a collective call."""

    def total(self, local: Tensor) -> Tensor:
        """The sum over ranks; a collective call."""


class Slices(ABC):
    """Slices of up to `rows` tokens; fresh buffers of this size would each be paid for in page faults.

    Attributes:
        precise: dtype of sums, fp32 or fp64.
        grad_weight: [V, d], the gradient of the head so far, or None.
        z_loss: coefficient of the squared log-sum-exps.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, rows: int, with_gradients: bool, z_loss: float = 0.0) -> None:
        self.rows, self.z_loss = rows, z_loss
        self.precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self._narrow = self.precise != hidden.dtype
        self.grad_weight = torch.zeros_like(weight, dtype=self.precise) if with_gradients else None

    @staticmethod
    @abstractmethod
    def width(words: int) -> int:
        """Logits held of a token."""

    @abstractmethod
    def add_losses(
        self,
        parts: Tensor,
        hidden: Tensor,
        targets: Tensor,
        kept: Tensor,
        ranks: VocabularyRanks | None,
        grad_hidden: Tensor | None,
    ) -> None:
        """Add cross-entropy and z-loss of some tokens, whose gradients go to `grad_hidden` and onto `grad_weight`.

        Args:
            parts: [2], the two sums.
            hidden: [n, d].
            targets: int64 [n], rows of this head; NOWHERE where it has none.
            kept: bool [n], false where the token is ignored.
            grad_hidden: [n, d], or None.
        """

    def _add_z(self, parts: Tensor, normalisers: Tensor, mine: Tensor) -> None:
        """Add the z-loss of tokens whose label is a row of this head: of every token on one of the ranks."""
        if self.z_loss:
            parts[1] += self.z_loss * normalisers.square().where(mine, 0).sum()


class InFp32(Slices):
    """Logits in at least fp32, beside those of a product in fewer bits."""

    def __init__(self, hidden: Tensor, weight: Tensor, rows: int, with_gradients: bool, z_loss: float = 0.0) -> None:
        super().__init__(hidden, weight, rows, with_gradients, z_loss)
        shape = rows, len(weight)
        self._weight = weight
        of_its_own = not self._narrow and ignores_out(hidden)
        self._logits = None if of_its_own else hidden.new_empty(shape, dtype=self.precise)
        self._low = hidden.new_empty(shape) if self._narrow else None
        self._product = torch.empty_like(weight) if self._narrow and with_gradients else None

    @staticmethod
    def width(words: int) -> int:
        return words

    def add_losses(
        self,
        parts: Tensor,
        hidden: Tensor,
        targets: Tensor,
        kept: Tensor,
        ranks: VocabularyRanks | None,
        grad_hidden: Tensor | None,
    ) -> None:
        into = self._logits if self._low is None else self._low
        low_logits = matmul(hidden, self._weight.T, out=None if into is None else into[: len(hidden)])
        logits = low_logits
        if self._low is not None:
            assert self._logits is not None
            logits = self._logits[: len(hidden)].copy_(low_logits)
        mine = targets != NOWHERE
        targets = targets.where(mine, 0)[:, None]
        first_logits = logits[:, 0].clone()
        log_probabilities = torch.log_softmax(logits, dim=-1, out=logits)
        local = normalisers = first_logits - log_probabilities[:, 0]
        if ranks:
            normalisers = ranks.log_normaliser(local)
            log_probabilities += (local - normalisers)[:, None]
        parts[0] -= log_probabilities.gather(1, targets).squeeze(1).where(mine, 0).sum()
        self._add_z(parts, normalisers, mine)
        if grad_hidden is None or self.grad_weight is None:
            return
        grad_logits = log_probabilities.exp_()
        if self.z_loss:
            grad_logits.mul_((1 + 2 * self.z_loss * normalisers)[:, None])
        grad_logits.scatter_add_(1, targets, mine[:, None].to(grad_logits.dtype).neg_())
        if self._low is not None:
            grad_logits = low_logits.copy_(grad_logits)
        seen = hidden * kept[:, None]  # ignored tokens are left out here, where rows are short
        _add_product(self.grad_weight, grad_logits.T, seen, self._product)
        grad_hidden.copy_(matmul(grad_logits, self._weight).mul_(kept[:, None]))


class InPlace(Slices):
    """Logits in the hidden states' dtype, which become their gradients where they stand."""

    def __init__(self, hidden: Tensor, weight: Tensor, rows: int, with_gradients: bool, z_loss: float = 0.0) -> None:
        self._words, width = len(weight), self.width(len(weight))
        # Rows of zeros: products of whole rows of logits are of aligned tensors.
        self._weight = weight if width == self._words else pad(weight, (0, 0, 0, width - self._words))
        super().__init__(hidden, self._weight, rows, with_gradients, z_loss)
        self._whole_gradient = self.grad_weight
        self.grad_weight = None if self._whole_gradient is None else self._whole_gradient[: self._words]
        self._logits = hidden.new_empty(rows, width)
        needs_product = self._narrow and with_gradients and not _adds_in_fp32(hidden)
        self._product = torch.empty_like(self._weight) if needs_product else None

    @staticmethod
    def width(words: int) -> int:
        return padded(words)

    def add_losses(
        self,
        parts: Tensor,
        hidden: Tensor,
        targets: Tensor,
        kept: Tensor,
        ranks: VocabularyRanks | None,
        grad_hidden: Tensor | None,
    ) -> None:
        logits = torch.mm(hidden, self._weight.T, out=self._logits[: len(hidden)])
        normalisers, picked = log_normalisers(logits, targets, self._words)
        if ranks:
            normalisers = ranks.log_normaliser(normalisers)
        mine = targets != NOWHERE
        parts[0] += (normalisers - picked).where(mine, 0).sum()
        self._add_z(parts, normalisers, mine)
        if grad_hidden is None or self._whole_gradient is None:
            return
        gradients_(logits, targets, normalisers.masked_fill(~kept, float("inf")), self._words, 2 * self.z_loss)
        _add_product(self._whole_gradient, logits.T, hidden, self._product)
        torch.mm(logits, self._weight, out=grad_hidden)


def _adds_in_fp32(operand: Tensor) -> bool:
    """Whether products of 16-bit operands are added to sums in fp32 at once: cuBLAS does, AMD's library need not."""
    return operand.is_cuda and not torch.version.hip


def _add_product(total: Tensor, left: Tensor, right: Tensor, product: Tensor | None) -> None:
    """total += left @ right.

    Args:
        total: in fp32 where the operands are narrower.
        product: of its shape, in the operands' dtype, where the product cannot be added to it at once.
    """
    if product is not None:
        total += torch.mm(left, right, out=product)
    elif total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
