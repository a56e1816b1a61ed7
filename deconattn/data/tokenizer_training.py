"""Train a SentencePiece tokenizer on a sample of the corpus that it will pack."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from deconattn.errors import UserError

MAX_SENTENCES = 200_000
_MAX_SENTENCE_CHARACTERS = 1000  # SentencePiece ignores sentences of more than 4192 bytes, 4 a character at most
_MIN_VOCAB_SIZE = 256 + 3 + 1  # the bytes, <unk>, <s>, </s>, and something to learn
_THREADS = 4  # a constant: the order of summation, hence the model, depends on it


def train_sentencepiece(texts: Iterable[str], vocab_size: int, out_file: Path) -> None:
    """Train a unigram model with byte fallback on the first 200,000 lines of `texts` and write it to `out_file`.

    Lossless: no normalisation, whitespace kept, unseen characters become bytes. Ids 0, 1, 2 are `<unk>`, `<s>`,
    `</s>`. The same texts give the same bytes. Raises :class:`UserError` if the vocabulary does not suit the corpus.
    """
    import sentencepiece

    if vocab_size < _MIN_VOCAB_SIZE:
        raise UserError(f"train:{vocab_size}: the vocabulary must have at least {_MIN_VOCAB_SIZE} entries")
    sentences = list(islice(_sentences(texts), MAX_SENTENCES))
    if not sentences:
        raise UserError(f"train:{vocab_size}: the input holds no text to train a tokenizer on; check --text-field")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
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
        raise _explain(str(error), vocab_size) from None
    with out_file.open("wb") as file:
        file.write(model.getvalue())
        file.flush()
        os.fsync(file.fileno())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _MAX_SENTENCE_CHARACTERS):
                yield line[start : start + _MAX_SENTENCE_CHARACTERS]


def _explain(message: str, vocab_size: int) -> UserError:
    if largest := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return UserError(
            f"train:{vocab_size}: the corpus is too small for this vocabulary; "
            f"use train:{largest[1]} or less, or give more text"
        )
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return UserError(f"train:{vocab_size}: the corpus has too many distinct characters; use at least {least[1]}")
    return UserError(
        f"train:{vocab_size}: SentencePiece cannot train on this corpus ({message}); use a ready tokenizer"
    )
