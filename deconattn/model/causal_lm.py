"""The language model that trains: decoder, head, loss."""

from typing import NamedTuple

from torch import Tensor, nn

from deconattn.model.config import ModelConfig
from deconattn.model.decoder import Decoder
from deconattn.ops.cross_entropy import IGNORED, linear_cross_entropy


class LossSum(NamedTuple):
    """Cross-entropy in nats, summed, and over how many labels (int64 scalar)."""

    total: Tensor
    labels: Tensor


class Head(nn.Linear):
    """Hidden states to logits, or straight to the summed loss when labels are given."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """[.., d] -> logits [.., V]; with int64 labels [..] (-100 ignored), the summed loss."""
        if labels is None:
            return super().forward(hidden)
        return linear_cross_entropy(hidden.flatten(0, -2), self.weight, labels.flatten())


class CausalLM(nn.Module):
    """Parameters and buffers carry Hugging Face's Qwen2/Qwen3 names: the state dict is the canonical one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> LossSum:
        """int64 [B, L] each; labels[:, t] is the token that follows input_ids[:, t], or -100."""
        hidden = self.model(input_ids, position_ids, document_ids)
        return LossSum(self.lm_head(hidden, labels), (labels != IGNORED).sum())

    def logits(
        self, input_ids: Tensor, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """[B, L] -> [B, L, vocab_size]."""
        return self.lm_head(self.model(input_ids, position_ids, document_ids))
