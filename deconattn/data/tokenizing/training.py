"""Train a tokenizer on a sample of the corpus that it will pack: SentencePiece or byte-level BPE."""

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from deconattn.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

MAX_SENTENCES = 200_000
MAX_CHARACTERS = 100_000_000
END_OF_TEXT = "<|endoftext|>"
_KINDS = ("unigram", "bpe", "byte-bpe")
_MAX_SENTENCE_CHARACTERS = 1000  # SentencePiece ignores sentences of more than 4192 bytes, 4 a character at most
_PIECE_CHARACTERS = 10_000  # the cost of a merge grows with the longest word
_LEAST = {"unigram": 256 + 3 + 1, "bpe": 256 + 3 + 1, "byte-bpe": 256 + 1 + 1}
"""The bytes, `<unk>`, `<s>`, `</s>` or the separator, and something to learn."""
_MOST = 10_000_000
_MIN_PAIRS = 2  # a pair that occurs once teaches nothing
_THREADS = 4  # a constant: the order of summation, hence the model, depends on it


@dataclass(frozen=True)
class Training:
    """Specification of a tokenizer to train: `kind` is "unigram", "bpe" (both SentencePiece) or "byte-bpe"."""

    kind: str
    vocab_size: int

    def __str__(self) -> str:
        return self.spec(self.vocab_size)

    def spec(self, vocab_size: int) -> str:
        """Spelling of this kind on the command line."""
        return f"train:{vocab_size}" if self.kind == "unigram" else f"train:{self.kind}:{vocab_size}"


def parse_training(spec: str) -> Training | None:
    """Parse `train:VOCAB` and `train:KIND:VOCAB`; None for anything that does not begin with `train:`.

    Raises :class:`UserError` for other forms and for vocabularies that cannot be.
    """
    if not spec.startswith("train:"):
        return None
    parts = re.fullmatch(rf"train:(?:({'|'.join(_KINDS)}):)?(\d{{1,18}})", spec, re.ASCII)
    if parts is None:
        kinds = ", ".join(f"train:{kind}:VOCAB" for kind in _KINDS[:-1])
        raise UserError(
            f"--tokenizer {spec}: write train:VOCAB, {kinds} or train:{_KINDS[-1]}:VOCAB, for example train:32000"
        )
    training = Training(parts[1] or "unigram", int(parts[2]))
    least = _LEAST[training.kind]
    if not least <= training.vocab_size <= _MOST:
        raise UserError(f"{training}: the vocabulary must have at least {least} and at most {_MOST:,} entries")
    return training


def train_tokenizer(texts: Iterable[str], training: Training, folder: Path) -> Path:
    """Train on the beginning of `texts`, write `tokenizer.model` or `tokenizer.json` into `folder`, return its path.

    SentencePiece learns from the first 200,000 lines, cut at 1000 characters; byte-level BPE from the first 100
    million characters. All kinds are lossless: no normalisation, whitespace kept, unseen characters become bytes.
    In SentencePiece models ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`; in byte-level ones 0 is `<|endoftext|>`. The same
    texts give the same bytes. Raises :class:`UserError` if the vocabulary does not suit the corpus.
    """
    with _progress(training) as counted:
        if training.kind == "byte-bpe":
            path, content = folder / "tokenizer.json", _byte_bpe(counted(_pieces(texts)), training)
        else:
            path, content = folder / "tokenizer.model", _sentencepiece(counted(_sentences(texts)), training)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _sentencepiece(sentences: Iterator[str], training: Training) -> bytes:
    import sentencepiece

    sample = list(sentences)
    if not sample:
        raise _no_text(training)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            vocab_size=training.vocab_size,
            model_type=training.kind,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            num_threads=_THREADS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _explain(str(error), training) from None
    return model.getvalue()


def _byte_bpe(pieces: Iterator[str], training: Training) -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    first = next(pieces, None)
    if first is None:
        raise _no_text(training)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=training.vocab_size,
        min_frequency=_MIN_PAIRS,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for part in ([first], pieces) for piece in part), trainer)
    if tokenizer.get_vocab_size() < training.vocab_size:
        raise _too_small(training, tokenizer.get_vocab_size())
    return tokenizer.to_str(pretty=True).encode()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The first lines, in lengths that SentencePiece takes."""
    lines = (
        line[start : start + _MAX_SENTENCE_CHARACTERS]
        for text in texts
        for line in text.split("\n")
        for start in range(0, len(line), _MAX_SENTENCE_CHARACTERS)
    )
    return islice(lines, MAX_SENTENCES)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The first characters, cut before spaces, where a word begins for byte-level BPE too."""
    left = MAX_CHARACTERS
    for text in texts:
        start = 0
        while start < len(text):
            end = start + _PIECE_CHARACTERS
            if end < len(text) and (space := text.rfind(" ", start + 1, end)) > 0:
                end = space
            yield text[start : min(end, start + left)]
            left -= end - start
            if left <= 0:
                return
            start = end


@contextmanager
def _progress(training: Training) -> Iterator["_Counted"]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        yield _Counted(progress, training)


class _Counted:
    """Shows how much text has been read, then that a vocabulary is being learned from it."""

    def __init__(self, progress: "Progress", training: Training) -> None:
        self._progress, self._training = progress, training
        self._task = progress.add_task("reading a sample for the tokenizer")

    def __call__(self, parts: Iterator[str]) -> Iterator[str]:
        characters = 0
        for part in parts:
            characters += len(part)
            self._describe(f"reading a sample for the tokenizer: {characters / 1e6:.1f}M characters")
            yield part
        self._describe(f"learning {self._training.vocab_size:,} entries from {characters / 1e6:.1f}M characters")

    def _describe(self, description: str) -> None:
        if not self._progress.disable:
            self._progress.update(self._task, description=description)


def _no_text(training: Training) -> UserError:
    return UserError(f"{training}: the input holds no text to train a tokenizer on; check --text-field")


def _too_small(training: Training, largest: int) -> UserError:
    return UserError(
        f"{training}: the corpus is too small for this vocabulary; "
        f"use {training.spec(largest)} or less, or give more text"
    )


def _explain(message: str, training: Training) -> UserError:
    if largest := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return _too_small(training, int(largest[1]))
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return UserError(f"{training}: the corpus has too many distinct characters; use at least {least[1]}")
    return UserError(f"{training}: SentencePiece cannot train on this corpus ({message}); use a ready tokenizer")
