"""Tokenizers behind one small interface: a Hugging Face `tokenizer.json` or a SentencePiece `.model`.

A tokenizer here turns text into ids and back and adds nothing: no special tokens, no truncation, no padding.
It knows its document separator, and a fingerprint by which packed corpora and checkpoints recognise it.
"""

import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import SpecialTokens
from deconattn.data.tokenizing.fingerprints import fingerprint, first_fingerprint, is_current
from deconattn.data.tokenizing.memory import check_memory
from deconattn.data.tokenizing.panics import panics_told
from deconattn.data.tokenizing.settings import (
    Settings,
    choose_separator,
    read_settings,
    shown,
    write_settings,
)
from deconattn.errors import UserError
from deconattn.json_files import reason

_MAX_GAP = 1 << 16
_BYTES_OF_TOKENIZERS = 140
"""Memory that the tokenizers library takes for a byte of text, as measured on texts without spaces."""
_BYTES_OF_SENTENCEPIECE = 60
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


class Tokenizer(ABC):
    """Interface of the project to a tokenizer.

    Attributes:
        vocab_size: the largest id + 1, added tokens included.
        eos_token_id: id of the token that separates documents.
        separator: that token's spelling; `named_by` is who chose it, for the user.
        special_tokens: whether a special token that a text spells is read as "text" or as that "token".
        unknown_id: the id of what the vocabulary cannot spell, None where there is no such id.
        fingerprint: hash of whatever determines the ids.
        content: the file's.
        releases_gil: whether other threads run during :meth:`encode_flat`.
    """

    releases_gil = False

    vocab_size: int
    eos_token_id: int
    separator: str
    named_by: str
    special_tokens: SpecialTokens
    unknown_id: int | None
    fingerprint: str
    file_name: str

    def __init__(self, content: bytes, origin: str) -> None:
        self.content = content
        self.origin = origin

    @property
    def settings(self) -> Settings:
        """The settings that make this tokenizer again out of its content."""
        return Settings(self.eos_token_id, self.named_by, self.special_tokens)

    @abstractmethod
    def find(self, token: str) -> int | None:
        """The id of a token by its spelling; None if there is none."""

    @abstractmethod
    def spelling(self, number: int) -> str | None:
        """Return a token by its id; None if there is none."""

    @abstractmethod
    def added_tokens(self) -> dict[str, int]:
        """Tokens that stand outside the model, and their ids, in order."""

    @abstractmethod
    def special(self) -> dict[str, int]:
        """The special tokens and their ids, in order."""

    def unreadable(self) -> dict[str, int]:
        """Return the special tokens but the separator that no text encodes to, even where it spells them out."""
        if self.special_tokens == "token":
            return {}
        return {token: number for token, number in self.special().items() if number != self.eos_token_id}

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Ids of each text, `[n]`, exactly the library's, without special tokens.

        Raises :class:`UserError` for a text on which the library gives up.
        """

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

    def is_known_as(self, known: str) -> bool:
        """Whether a corpus of this fingerprint, be it of an earlier version, was packed with this tokenizer."""
        return known == self.fingerprint

    def save(self, folder: Path, bos_token_id: int | None = None) -> Path:
        """Copy the tokenizer's file into `folder` as `file_name`, its settings beside it.

        :func:`load_tokenizer` of the folder reads both back. Returns the file's path.

        Args:
            bos_token_id: what documents begin with; None for nothing.
        """
        path = folder / self.file_name
        path.write_bytes(self.content)
        bos = None if bos_token_id is None else self.spelling(bos_token_id)
        write_settings(folder, self.separator, self.special_tokens, bos)
        return path


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, through the `tokenizers` library."""

    file_name = "tokenizer.json"

    def __init__(self, content: bytes, origin: str, settings: Settings) -> None:
        super().__init__(content, origin)
        self._given = content
        self._tokenizer = self._load(content)
        document = self._parse(content)
        if document["model"].get("dropout"):
            print(
                f"note: {origin}: its BPE dropout of {document['model']['dropout']} is switched off, so that a text "
                "always has the same ids",
                file=sys.stderr,
            )
            document["model"]["dropout"] = None
            self.content = json.dumps(document, ensure_ascii=False).encode()
            self._tokenizer = self._load(self.content)
        # A file may carry the truncation of the model that it was saved with.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens = settings.special_tokens or "token"
        self._tokenizer.encode_special_tokens = self.special_tokens == "text"
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > 2 * len(vocabulary) + _MAX_GAP:
            raise UserError(
                f"{origin} has {len(vocabulary):,} entries but the id {self.vocab_size - 1:,}, and a model has a row "
                "for every id up to it; number the entries without large gaps"
            )
        special = {*self.special(), *settings.special}
        self.eos_token_id, self.named_by = choose_separator(settings, vocabulary, special, -1, origin)
        self.separator = self._tokenizer.id_to_token(self.eos_token_id)
        self.unknown_id = _unknown(document["model"], vocabulary)
        self.fingerprint = fingerprint(document, self.special_tokens)
        if self.special_tokens == "text":
            self._check_text()

    def _check_text(self) -> None:
        """Raise UserError if the model itself, as a Unigram may, has a special token among the words of a text."""
        special = {token: number for token, number in self.special().items() if number != self.unknown_id}
        for token, ids in zip(special, self.encode_batch([*special]), strict=True):
            if special[token] in ids:
                raise UserError(
                    f"--special-tokens text: {self.origin} has {token!r} among the words of its model and reads it in "
                    "any text; give --special-tokens token"
                )

    def _load(self, content: bytes) -> Any:
        import tokenizers

        try:
            return tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"{self.origin} is not a tokenizer.json of the tokenizers library ({reason(error)}); "
                "give that file or a .model"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.content, self.origin, self.settings)  # the library's own pickle loses its settings

    def _parse(self, content: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(content))
        except (ValueError, RecursionError) as error:  # what one reader of JSON takes and the other does not
            raise UserError(f"{self.origin} is not plain JSON ({reason(error)}); restore it") from None

    def find(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def spelling(self, number: int) -> str | None:
        found: str | None = self._tokenizer.id_to_token(number)
        return found

    def added_tokens(self) -> dict[str, int]:
        """The tokens that are read from a text before anything else, in order of their ids."""
        tokens = self._tokenizer.get_added_tokens_decoder()
        return {tokens[number].content: number for number in sorted(tokens)}

    def special(self) -> dict[str, int]:
        tokens = self._tokenizer.get_added_tokens_decoder()
        return {tokens[number].content: number for number in sorted(tokens) if tokens[number].special}

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        check_memory(self.origin, texts, _BYTES_OF_TOKENIZERS)
        with panics_told(self.origin, sum(map(len, texts))):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        with panics_told(self.origin):
            text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    def is_known_as(self, known: str) -> bool:
        """Whether a corpus of this fingerprint was packed with this tokenizer; earlier versions knew "token" only."""
        if is_current(known):
            return known == self.fingerprint
        return self.special_tokens == "token" and known == first_fingerprint(json.loads(self._given))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model`, whose library reads no control piece from a text.

    SentencePiece itself reads U+2581 (its mark for a space) as a space.
    """

    file_name = "tokenizer.model"

    def __init__(self, content: bytes, origin: str, settings: Settings) -> None:
        import sentencepiece

        super().__init__(content, origin)
        if _TIKTOKEN.match(content):
            raise _tiktoken(origin)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            self.vocab_size = int(self._processor.get_piece_size())
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{origin} is not a SentencePiece model ({reason(error)}); give a .model or a tokenizer.json"
            ) from None
        if self.vocab_size == 0:
            raise UserError(f"{origin} is not a SentencePiece model (no pieces); give a .model or a tokenizer.json")
        if settings.special_tokens == "token":
            raise UserError(
                f"--special-tokens token: SentencePiece reads no special token from a text, and {origin} is its file; "
                "leave the flag out, or give a tokenizer.json"
            )
        self.special_tokens = "text"
        pieces = {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}
        own = int(self._processor.eos_id())
        self.eos_token_id, self.named_by = choose_separator(settings, pieces, self.special(), own, origin)
        self.separator = str(self._processor.id_to_piece(self.eos_token_id))
        self.unknown_id = int(self._processor.unk_id())
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.content, self.origin, self.settings)

    def find(self, token: str) -> int | None:
        number = int(self._processor.piece_to_id(token))
        return number if self._processor.id_to_piece(number) == token else None

    def spelling(self, number: int) -> str | None:
        return str(self._processor.id_to_piece(number)) if 0 <= number < self.vocab_size else None

    def added_tokens(self) -> dict[str, int]:
        """Its control pieces; but for the separator :meth:`unreadable`, all of them."""
        return self.special()

    def special(self) -> dict[str, int]:
        numbers = range(self.vocab_size)
        return {self._processor.id_to_piece(i): i for i in numbers if self._processor.is_control(i)}

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        check_memory(self.origin, texts, _BYTES_OF_SENTENCEPIECE)
        try:
            batch = self._processor.encode(list(texts), out_type=int, num_threads=1)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise UserError(
                f"{self.origin}: SentencePiece gives up on a text ({reason(error)}); mend the model or the text"
            ) from None
        return [np.array(ids, dtype=np.uint32) for ids in batch]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        text: str = self._processor.decode([int(i) for i in ids])
        return text


def load_tokenizer(
    spec: str | Path, eos: str | int | None = None, special_tokens: SpecialTokens | None = None
) -> HuggingFaceTokenizer | SentencePieceTokenizer:
    """Load a tokenizer from a `.json` or `.model` file, or a folder holding `tokenizer.json` or `tokenizer.model`.

    Args:
        spec: file or folder.
        eos: spelling or id of the document separator; otherwise the files beside the tokenizer name it, or its own
            special tokens.
        special_tokens: how a special token that a text spells is read; otherwise as the files say or the library does.

    Raises:
        UserError: there is no such file, it is neither, or it has no document separator.
    """
    path = Path(spec)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no tokenizer.json or tokenizer.model; name a folder or file that does")
        path = found[0]
    if path.exists() and not path.is_file():
        raise UserError(f"tokenizer {path} is not a regular file; give a tokenizer.json, .model or folder")
    if path.suffix == ".tiktoken":
        raise _tiktoken(str(path))
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
    settings = read_settings(path.parent, eos, special_tokens)
    if path.suffix == ".json":
        return HuggingFaceTokenizer(content, str(path), settings)
    return SentencePieceTokenizer(content, str(path), settings)


def find_bos(tokenizer: Tokenizer, token: str) -> int:
    """The id of the token `--bos` names. Raises :class:`UserError` if the tokenizer has none."""
    found = tokenizer.find(token)
    if found is None:
        raise UserError(
            f"--bos: {tokenizer.origin} has no token {token!r} to begin documents with; give one of its special "
            f"tokens ({shown(tokenizer.special())})"
        )
    return found


def _unknown(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    token = model.get("unk_token")
    return vocabulary.get(token) if isinstance(token, str) else None


def _tiktoken(origin: str) -> UserError:
    return UserError(
        f"{origin} is a tiktoken file, as Llama 3 has one beside its original weights, and names no separator or other "
        "special token; give the tokenizer.json of the same model"
    )
