"""The flags of the command `pack`."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from deconattn.errors import UserError


@dataclass(frozen=True)
class PackConfig:
    """Pack text into Arrow shards for training. A pack that was killed goes on when the same command runs again."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Text, JSON lines and arrays (all also compressed), Parquet, Arrow and datasets saved by Hugging Face's library:
    files, folders (searched recursively), quoted patterns, URLs (s3://, gs://, hf://, ...), or - for JSON lines on
    standard input. A .txt file is one document; otherwise a line, an element or a row is one."""
    tokenizer: str
    """A tokenizer.json, a SentencePiece .model, a folder holding one of them, or train:VOCAB (also train:bpe:VOCAB,
    train:byte-bpe:VOCAB) to train one of VOCAB entries on the input."""
    out: Path
    """The folder to write. It appears when everything is in it."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Tokenizing threads or processes. The output does not depend on it."""
    val_fraction: float = 0.01
    """Part of the documents held out as the validation split. 0 holds out none."""
    shard_tokens: int = 100_000_000
    """Tokens after which a new shard begins; a document is never cut."""
    text_field: str = "text"
    """The field of a JSON line, or column of a table, that holds the text."""
    chat: bool = False
    """The inputs are JSON lines of {"messages": [..]}, written by the tokenizer's chat template; a training on them
    learns the assistant's answers alone."""
    split: str | None = None
    """Which split to take of a dataset that was saved with several, such as train."""
    min_tokens: int = 1
    """Skip documents of fewer tokens, the separator included."""
    max_tokens: int | None = None
    """Stop after the document that reaches so many tokens."""
    dedup: Literal["exact"] | None = None
    """Keep the first of documents with the same text. Takes 16 bytes of memory a document."""
    shuffle: int | None = None
    """A seed: write the documents of each split in a random order. Takes as much disk again while it runs."""
    eos: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = None
    """The token after each document. By default the one that generation_config.json, tokenizer_config.json,
    special_tokens_map.json or config.json beside the tokenizer names, or else a usual one of its special tokens."""
    bos: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = None
    """A token to put before each document, for example <s>."""
    special_tokens: Literal["text", "token"] | None = None
    """What a special token that a document spells out is read as: text like any other, or that token. By default as
    the tokenizer's library does: SentencePiece text, a tokenizer.json the token."""
    max_bad: int = 100
    """Bad lines (not UTF-8, not JSON, no text) to skip and report before giving up."""
    overwrite: bool = False
    """Replace a packed corpus in the output folder. Nothing else is ever replaced."""
    restart: bool = False
    """Discard what an interrupted pack has left and begin again."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("no input; name files, folders or patterns")
        if self.chat:
            for flag, given in (("--bos", self.bos is not None), ("--tokenizer train:", self._trains)):
                if given:
                    raise UserError(f"--chat: the tokenizer has a template that begins conversations: leave {flag} out")
            if self.special_tokens == "text":
                raise UserError("--chat: a template spells special tokens out: leave --special-tokens text out")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction}: must be at least 0 and below 1")
        for flag, value, least in (
            ("workers", self.workers, 1),
            ("shard-tokens", self.shard_tokens, 1),
            ("min-tokens", self.min_tokens, 1),
            ("max-tokens", self.max_tokens, 1),
            ("shuffle", self.shuffle, 0),
            ("max-bad", self.max_bad, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"--{flag} {value}: must be at least {least}")

    @property
    def _trains(self) -> bool:
        return self.tokenizer.startswith("train:")

    def that_matter(self) -> dict[str, Any]:
        """The flags that the packed folder depends on, beside inputs and those of the tokenizer, by their names."""
        names = ("val_fraction", "shard_tokens", "text_field", "chat", "min_tokens", "max_tokens", "dedup", "shuffle")
        return {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}
