"""Flags that choose the text that models are run over, and their checks."""

from dataclasses import dataclass
from pathlib import Path

from deconattn.errors import UserError

SHORTEST = 4
"""Tokens of a sequence: local focus looks back by up to three."""


@dataclass(frozen=True)
class Sample:
    """Text to run models over, and how much of it.

    Without `data` and `text` it is the bundled demo corpus.
    """

    data: Path | None = None
    """A packed corpus, whose tokenizer every model must have; its validation split if it has enough."""
    text: tuple[str, ...] = ()
    """Text files, folders or quoted patterns (.txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet); each model reads them
    with its own tokenizer. By default the bundled demo corpus."""
    sequences: int = 16
    """Number of sequences."""
    seq_len: int | None = None
    """Tokens in each; by default as many as all models take, at most 2048."""

    def check(self) -> None:
        """Raises UserError for flags that cannot be."""
        if self.data is not None and self.text:
            raise UserError("--data and --text are both given: leave one out")
        if self.sequences < 1:
            raise UserError(f"--sequences {self.sequences}: give 1 or more")
        if self.seq_len is not None and self.seq_len < SHORTEST:
            raise UserError(f"--seq-len {self.seq_len}: give {SHORTEST} or more, which local focus needs")

    @property
    def source(self) -> str:
        """The text, in words."""
        if self.data is not None:
            return str(self.data)
        return ", ".join(self.text) or "the bundled demo corpus"
