"""Tokenizers behind one small interface: a Hugging Face `tokenizer.json` or a SentencePiece `.model`.

A tokenizer here turns text into ids and back and adds nothing: no special tokens, no truncation, no padding.
It knows its document separator, and a fingerprint by which packed corpora and checkpoints recognise it.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.errors import UserError

SEPARATORS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001  (DeepSeek spells it with full-width bars)
    "<|endofdocument|>",
    "<|im_end|>",
    "[EOS]",
    "[SEP]",
)
_MAX_GAP = 1 << 16


class Tokenizer(ABC):
    """Interface of the project to a tokenizer.

    `vocab_size` is the largest id + 1, added tokens included. `eos_token_id` separates documents; `separator` is how
    it is spelled.
    `fingerprint` is a SHA-256 of what determines the ids. `content` is its file's. `releases_gil` says whether
    other threads run during :meth:`encode_flat`.
    """

    releases_gil = False

    vocab_size: int
    eos_token_id: int
    separator: str
    fingerprint: str
    file_name: str

    def __init__(self, content: bytes, origin: str = "") -> None:
        self.content = content

    @abstractmethod
    def added_tokens(self) -> dict[str, int]:
        """Tokens that stand outside the model, and their ids, in order."""

    def unreadable(self) -> dict[str, int]:
        """Return the added tokens that no text encodes to, even where it spells them out."""
        return {}

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Ids of each text, `[n]`, exactly the library's, without special tokens."""

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Ids of all texts, `[tokens]`, a separator after each, and each text's count, `[texts]`, that included."""
        if not texts:
            return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        separator = np.array([self.eos_token_id], dtype=np.uint32)
        parts = [part for ids in self.encode_batch(texts) for part in (ids, separator)]
        counts = np.fromiter((len(ids) + 1 for ids in parts[::2]), dtype=np.int64, count=len(texts))
        return np.concatenate(parts), counts

    def fresh(self) -> "Tokenizer":
        """Return a copy for another thread or process that shares no cache."""
        return self

    @abstractmethod
    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of ids `[n]`; special tokens of a `tokenizer.json` are spelled out."""

    def save(self, folder: Path) -> Path:
        """Copy the tokenizer's file, unchanged, into `folder` as `file_name`; :func:`load_tokenizer` reads it back."""
        path = folder / self.file_name
        path.write_bytes(self.content)
        return path


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, through the `tokenizers` library."""

    file_name = "tokenizer.json"

    def __init__(self, content: bytes, origin: str) -> None:
        import tokenizers

        super().__init__(content)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"{origin} is not a tokenizer.json of the tokenizers library ({error}); give that file or a .model"
            ) from None
        # A file may carry the truncation of the model that it was saved with.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > 2 * len(vocabulary) + _MAX_GAP:
            raise UserError(
                f"{origin} has {len(vocabulary):,} entries but the id {self.vocab_size - 1:,}, and a model has a row "
                "for every id up to it; number the entries without large gaps"
            )
        self.separator = _separator(vocabulary, origin)
        self.eos_token_id = vocabulary[self.separator]
        self.fingerprint = _fingerprint_json(content)

    def added_tokens(self) -> dict[str, int]:
        """The tokens that are read from a text before anything else, in order of their ids."""
        tokens = self._tokenizer.get_added_tokens_decoder()
        return {tokens[number].content: number for number in sorted(tokens)}

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
        return text


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model`. SentencePiece itself reads U+2581 (its mark for a space) as a space."""

    file_name = "tokenizer.model"

    def __init__(self, content: bytes, origin: str) -> None:
        import sentencepiece

        super().__init__(content)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            self.vocab_size = int(self._processor.get_piece_size())
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{origin} is not a SentencePiece model ({error}); give a .model or a tokenizer.json"
            ) from None
        if self.vocab_size == 0:
            raise UserError(f"{origin} is not a SentencePiece model (no pieces); give a .model or a tokenizer.json")
        self.eos_token_id = int(self._processor.eos_id())
        if self.eos_token_id < 0:  # a model may disable eos and carry a separator as a user-defined piece
            pieces = {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}
            self.eos_token_id = pieces[_separator(pieces, origin)]
        self.separator = str(self._processor.id_to_piece(self.eos_token_id))
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def added_tokens(self) -> dict[str, int]:
        """Its control pieces; :meth:`unreadable`, all of them."""
        numbers = range(self.vocab_size)
        return {self._processor.id_to_piece(i): i for i in numbers if self._processor.is_control(i)}

    def unreadable(self) -> dict[str, int]:
        """Its control pieces but the separator."""
        return {piece: i for piece, i in self.added_tokens().items() if i != self.eos_token_id}

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        batch = self._processor.encode(list(texts), out_type=int, num_threads=1)
        return [np.array(ids, dtype=np.uint32) for ids in batch]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        text: str = self._processor.decode([int(i) for i in ids])
        return text


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """Load a tokenizer from a `.json` or `.model` file, or a folder holding `tokenizer.json` or `tokenizer.model`.

    Raises :class:`UserError` if there is no such file, it is neither, or it has no document separator.
    """
    path = Path(spec)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no tokenizer.json or tokenizer.model; name a folder or file that does")
        path = found[0]
    if path.suffix not in (".json", ".model"):
        raise UserError(
            f"tokenizer {spec}: give a tokenizer.json, a SentencePiece .model or a folder that holds one of them"
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"tokenizer {path}: no such file; give a tokenizer.json, .model or folder") from None
    except OSError as error:
        raise UserError(f"tokenizer {path}: {error.strerror or error}; check its permissions") from None
    if path.suffix == ".json":
        return HuggingFaceTokenizer(content, str(path))
    return SentencePieceTokenizer(content, str(path))


def _separator(vocabulary: dict[str, int], origin: str) -> str:
    for piece in SEPARATORS:
        if piece in vocabulary:
            return piece
    raise UserError(
        f"{origin} has no document separator (none of {', '.join(SEPARATORS[:5])}, ...); add one to its added tokens"
    )


def _fingerprint_json(content: bytes) -> str:
    """Hash what determines ids; the decoder, post-processor, truncation and padding do not."""
    document = json.loads(content)
    model = dict(document.get("model") or {})
    if "merges" in model:  # the library writes a merge as "a b" or, since 0.20, as ["a", "b"]
        model["merges"] = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    large = {name: model.pop(name) for name in ("vocab", "merges") if name in model}  # nothing is left out of these
    parts = [document.get("normalizer"), document.get("pre_tokenizer"), document.get("added_tokens"), model]
    kept = _without_defaults(parts)
    kept[-1] |= large
    canonical = json.dumps(kept, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_defaults(part: Any) -> Any:
    """Leave out what a newer version of the library spells out when it saves an older file again."""
    if isinstance(part, list):
        return [_without_defaults(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: _without_defaults(value)
        for key, value in part.items()
        if value is not None and value is not False and (key, value) != ("use_regex", True) and key != "trim_offsets"
    }
