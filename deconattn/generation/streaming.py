"""Tokens into text, as they come."""

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

_INCOMPLETE = "\ufffd"
"""Replacement character that a tokenizer decodes an incomplete UTF-8 sequence to."""


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
