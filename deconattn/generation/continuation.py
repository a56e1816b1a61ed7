"""Continuing a prompt: its tokens, how many more fit, the loop that makes them, and tokens into text as they come."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from deconattn.checkpoint.stored_model import StoredModel
from deconattn.errors import UserError
from deconattn.generation.sampling import Sampling

_INCOMPLETE = "\ufffd"
"""Replacement character that a tokenizer decodes an incomplete UTF-8 sequence to."""


def encode(stored: StoredModel, prompt: str) -> Tensor:
    """The prompt's ids, int64 [1, L].

    Raises:
        UserError: there are none, or more than the model can take.
    """
    ids = stored.tokenizer(prompt, verbose=False).input_ids
    if not ids:
        raise UserError(f"the prompt {prompt!r} has no token in this model's tokenizer: give another")
    if stored.longest is not None and len(ids) > stored.longest:
        raise UserError(
            f"the prompt has {len(ids)} tokens, more than the model's fixed stream of {stored.longest}: "
            "shorten it, or train with a longer --seq-len"
        )
    return torch.tensor([ids])


def room(stored: StoredModel, prompt: Tensor) -> int | None:
    """Tokens by which a prompt [1, L] can be continued; None is any number."""
    # The last token is never read, so nothing has to hold it.
    return None if stored.longest is None else stored.longest - prompt.shape[1] + 1


def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Tensor,
    sampling: Sampling,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Replaces the model's generation configuration and, where `sampling` has a seed, seeds torch's own generators.

    Args:
        prompt: int64 [1, L].
        streamer: is given the prompt, and each token as it is made.

    Returns:
        Prompt and continuation, int64 [1, L + N], the end of text included where the model made it.
    """
    own = model.generation_config
    eos = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    choice = {"temperature": float(sampling.temperature), "top_p": sampling.top_p, "top_k": 0}
    # Replaced, because generate takes what it is not told from the model's: a repetition penalty, for example.
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        eos_token_id=eos,
        pad_token_id=eos[0] if isinstance(eos, list) else eos,  # one row has no padding, but a warning asks for it
        **(choice if sampling.temperature else {}),
    )
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    prompt = prompt.to(model.device)
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=streamer)


class TextStream(BaseStreamer):
    """Streamer for `generate` with one row: writes each token's text once no later token can change it.

    What is decoded together are the tokens written last and those not written yet. transformers' TextStreamer decodes
    the continuation, and after a line end each line, by itself, and many a tokenizer takes the first space of what it
    decodes away; it also holds text back until a space.

    Args:
        write: takes each piece of the continuation. Pieces are whole characters; special tokens have no text.

    Attributes:
        tokens: length of the continuation, the end of text included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]) -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._ids: list[int] = []
        self._written = 0
        self.tokens = 0

    def put(self, value: Tensor) -> None:
        """The prompt [1, L] first, then new tokens [1]."""
        ids = value.flatten().tolist()
        if not self._ids:
            self._ids, self._written = ids, len(ids)
            return
        self._ids += ids
        self.tokens += len(ids)
        piece = self._piece()
        if piece and not piece.endswith(_INCOMPLETE):
            self._write(piece)
            self._ids = self._ids[self._written :]
            self._written = len(self._ids)

    def end(self) -> None:
        """Write what was held back."""
        if piece := self._piece():
            self._write(piece)
        self._written = len(self._ids)

    def _piece(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._written])) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
