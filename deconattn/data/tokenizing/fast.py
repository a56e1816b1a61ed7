"""gigatoken where it gives the ids of the tokenizer's own library, which remains the judge."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from deconattn.data.manifest import SpecialTokens
from deconattn.data.tokenizing.disagreements import AWKWARD_TEXTS, has_unsettled, with_added_tokens
from deconattn.data.tokenizing.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from deconattn.program import installation

_SAMPLE_CHARACTERS = 200_000
_EXCERPT = 60
_CHECK_BYTES = 8 << 20
_CACHE_BYTES = 256 << 20
"""gigatoken remembers each word that it meets and forgets none: a gigabyte for 100 MB of text without repetitions.
Beyond this much it starts anew."""


class FastTokenizer(Tokenizer):
    """gigatoken in front of another tokenizer, for :meth:`encode_flat` only.

    Texts whose characters the two libraries may know from different editions of Unicode, or that spell out the
    separator or a special token that is read in no text, go to the other. Pickled or made anew
    (:meth:`fresh`) it is not checked again. Threads may run side by side, each with its own.
    """

    releases_gil = True

    def __init__(self, exact: HuggingFaceTokenizer | SentencePieceTokenizer) -> None:
        super().__init__(exact.content, exact.origin)
        self.file_name = exact.file_name
        self.vocab_size = exact.vocab_size
        self.eos_token_id = exact.eos_token_id
        self.separator, self.named_by = exact.separator, exact.named_by
        self.special_tokens, self.unknown_id = exact.special_tokens, exact.unknown_id
        self.fingerprint = exact.fingerprint
        self._unreadable = exact.unreadable()
        self._kind: type[HuggingFaceTokenizer | SentencePieceTokenizer] = type(exact)
        self._exact: Tokenizer | None = exact
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        """State less the engines, which another process rebuilds faster from the content."""
        return {key: value for key, value in vars(self).items() if key not in ("_exact", "_engine")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._exact = None
        self._start()

    def fresh(self) -> "FastTokenizer":
        """Return a copy with an engine and cache of its own."""
        other = FastTokenizer.__new__(FastTokenizer)
        other.__setstate__(self.__getstate__())
        return other

    def find(self, token: str) -> int | None:
        """Ask the exact library for a token's id."""
        return self._judge().find(token)

    def spelling(self, number: int) -> str | None:
        """Ask the exact library for a token by its id."""
        return self._judge().spelling(number)

    def added_tokens(self) -> dict[str, int]:
        """Return the exact library's added tokens."""
        return self._judge().added_tokens()

    def special(self) -> dict[str, int]:
        """Return the exact library's special tokens."""
        return self._judge().special()

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Encode by the exact library."""
        return self._judge().encode_batch(texts)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """Decode by the exact library."""
        return self._judge().decode(ids)

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Ids of all texts, `[tokens]`, a separator after each, and each text's count, `[texts]`."""
        contents = [text.encode() for text in texts]
        if not has_unsettled(b"".join(contents)) and (whole := self._encode_joined(contents)) is not None:
            return whole
        parts: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]] = []
        for apart, group in groupby(zip(texts, contents, strict=True), lambda pair: self._is_apart(pair[1])):
            pairs = list(group)
            joined = None if apart else self._encode_joined([content for _, content in pairs])
            parts.append(self._judge().encode_flat([text for text, _ in pairs]) if joined is None else joined)
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([counts for _, counts in parts])

    def _encode_joined(self, contents: list[bytes]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]] | None:
        """All in one call, which reads the separators too; None if a text spells out what must not be read in it."""
        if not contents:
            return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        joined = self.separator.encode().join([*contents, b""])
        self._forget_if_large(len(joined))
        # As a matrix of one row: of the methods that let other threads run, the one that returns plain arrays.
        matrix, _ = self._engine.encode_batch_padded([joined], pad_id=0, parallel=False)
        ids: npt.NDArray[np.uint32] = matrix[0]
        ends = np.flatnonzero(ids == self.eos_token_id) + 1
        if len(ends) != len(contents) or any((ids == token).any() for token in self._unreadable.values()):
            return None
        return ids, np.diff(ends, prepend=0)

    def _is_apart(self, content: bytes) -> bool:
        spelled = (self.separator, *self._unreadable)
        return has_unsettled(content) or any(token.encode() in content for token in spelled)

    def _judge(self) -> Tokenizer:
        if self._exact is None:
            self._exact = self._kind(self.content, self.origin, self.settings)
        return self._exact

    def _start(self) -> None:
        import gigatoken

        load = (
            gigatoken.Tokenizer.from_json
            if self.file_name.endswith(".json")
            else gigatoken.Tokenizer.from_sentencepiece
        )
        self._engine = load(self.content)
        self._resident = _resident()
        self._unchecked = 0

    def _forget_if_large(self, more: int) -> None:
        self._unchecked += more
        if self._unchecked >= _CHECK_BYTES:
            self._unchecked = 0
            if _resident() - self._resident > _CACHE_BYTES:
                del self._engine  # before the next one takes its own memory
                self._start()


def load_fast_tokenizer(
    spec: str | Path, sample: Sequence[str], eos: str | None = None, special_tokens: SpecialTokens | None = None
) -> Tokenizer:
    """The tokenizer of `spec`, through gigatoken if that is installed, takes it and gives the same ids.

    The ids are compared on the beginning of `sample` and on a set of difficult texts. A refusal or a difference is
    one warning on stderr (none for a SentencePiece unigram model, which its own library reads as fast as any); the
    tokenizer is then :func:`load_tokenizer`'s. So it is without gigatoken, which one warning says too.

    Raises:
        UserError: see :func:`load_tokenizer`.
    """
    exact = load_tokenizer(spec, eos, special_tokens)
    if exact.separator not in exact.added_tokens():  # gigatoken is to read it between the texts
        _warn(f"{spec}: gigatoken takes no separator that is an ordinary token")
        return exact
    texts = [*AWKWARD_TEXTS, *with_added_tokens([*exact.added_tokens()]), *_beginning(sample)]
    try:
        fast = FastTokenizer(exact)
        different = first_difference(exact, fast, texts)
    except ImportError:
        if not _is_unigram(exact):
            _warn(f"{spec}: gigatoken is not installed ({installation('fast')})")
        return exact
    except BaseException as error:  # whatever the library raises (a panic is no Exception), it costs speed only
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        if not _is_unigram(exact):
            reason = str(error).splitlines() or [type(error).__name__]
            _warn(f"{spec}: gigatoken does not take this tokenizer ({reason[0]})")
        return exact
    if different is not None:
        _warn(f"{spec}: gigatoken gives other ids, for example for {different[:_EXCERPT]!r}")
        return exact
    return fast


def first_difference(exact: Tokenizer, fast: Tokenizer, texts: Sequence[str]) -> str | None:
    """The first text for which the two do not give the same ids, None if there is none."""
    ids, counts = exact.encode_flat(texts)
    other, other_counts = fast.encode_flat(texts)
    if np.array_equal(ids, other) and np.array_equal(counts, other_counts):
        return None
    starts, other_starts = np.cumsum(counts) - counts, np.cumsum(other_counts) - other_counts
    for number, text in enumerate(texts):
        ours = ids[starts[number] :][: counts[number]]
        if not np.array_equal(ours, other[other_starts[number] :][: other_counts[number]]):
            return text
    return texts[-1]


def _is_unigram(tokenizer: Tokenizer) -> bool:
    """Whether gigatoken would gain nothing, so that nobody needs to hear of it."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return False
    from sentencepiece import sentencepiece_model_pb2 as model

    return bool(model.ModelProto.FromString(tokenizer.content).trainer_spec.model_type == model.TrainerSpec.UNIGRAM)


def _beginning(sample: Sequence[str]) -> list[str]:
    texts = []
    left = _SAMPLE_CHARACTERS
    for text in sample:
        if left <= 0:
            break
        texts.append(text[:left])
        left -= len(text)
    return texts


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _warn(message: str) -> None:
    print(f"warning: {message}; going on with its own library, which is slower", file=sys.stderr)
