"""Logits of any causal model at chosen positions: those of all positions of a long sequence would be too many."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deconattn.checkpoint.hf_config import MODEL_TYPES
from deconattn.checkpoint.stored_model import StoredModel
from deconattn.errors import UserError
from deconattn.evaluation.harness import TOKENS_A_BATCH
from deconattn.hf.configuration_deconattn import DeconAttnConfig


class LogitReader:
    """A model that was opened and loaded, read in two steps: hidden states of whole sequences, logits of some.

    Args:
        batch_size: sequences a batch; None: 4096 tokens.

    Attributes:
        head: what :meth:`hidden` returns to logits, [..., d] to [..., V].

    Raises:
        UserError: a sequence of `longest` tokens has more positions than the model has embeddings for.
    """

    def __init__(self, stored: StoredModel, model: PreTrainedModel, longest: int, batch_size: int | None) -> None:
        _check_learned_positions(stored, model, longest)
        # Others may scale or bound their logits.
        ours = isinstance(stored.config, DeconAttnConfig) or stored.config.model_type in MODEL_TYPES
        self._model, self._only_multiplies = model, ours
        self._batch_size = batch_size
        self.head: nn.Module = model.get_output_embeddings() if ours else nn.Identity()

    def batch_size(self, length: int) -> int:
        """Return how many sequences of so many tokens pass the model together."""
        return self._batch_size or max(1, TOKENS_A_BATCH // length)

    def hidden(self, ids: Tensor) -> Tensor:
        """Run sequences, int64 [B, L]: [B, L, d], what the head reads; of other families logits, [B, L, V]."""
        with torch.inference_mode():
            ids = ids.to(self._model.device)
            if self._only_multiplies:
                states: Tensor = self._model.base_model(input_ids=ids, use_cache=False)[0]
                return states
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
            return logits


def _check_learned_positions(stored: StoredModel, model: PreTrainedModel, longest: int) -> None:
    own = getattr(stored.config, "max_position_embeddings", None)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings():
            rows = module.num_embeddings
            if own is not None and own <= rows < longest:
                raise UserError(
                    f"{stored.label} has embeddings of {own} positions, fewer than the {longest} tokens of a sequence: "
                    "give shorter ones"
                )
