"""Sample numbers in, training batches out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deconattn.data.answers import MARK
from deconattn.data.corpus import TokenCorpus
from deconattn.data.corpus_tokenizer import difference
from deconattn.data.loading.best_fit import BestFit
from deconattn.data.loading.blend import Blend
from deconattn.data.loading.sample_layout import Concatenation, SampleLayout
from deconattn.data.loading.sampler import Order
from deconattn.errors import UserError
from deconattn.ops.cross_entropy import IGNORED
from deconattn.program import command

FEWEST = 64
"""Documents that a batch has offsets for at least. An empty one costs next to nothing, and a number of offsets that
changes costs a compiled layer another compilation."""


@dataclass(frozen=True)
class Batch:
    """B sequences of L tokens, or of a rank's part of them. The last three are there only with document masks.

    input_ids: int64 `[B, L]`.
    labels: int64 `[B, L]`, the next token, -100 where ignored.
    position_ids: int64 `[B, L]`, 0 at a document's first token and at a row's.
    document_ids: int64 `[B, L]`, 0, 1, ... within each row.
    document_offsets: int32 `[n]`, where each document starts in the rows laid end to end, then the end, repeated up to
        a power of two and one more.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None = None
    document_ids: Tensor | None = None
    document_offsets: Tensor | None = None

    @classmethod
    def of(cls, fields: Tensor) -> "Batch":
        """Return the batch of `fields`, int64 `[2, B, L]` or `[4, B, L]`, on the host: its first fields in order."""
        if len(fields) == 2:
            return cls(*fields)
        input_ids, labels, position_ids, document_ids = fields
        offsets = _offsets(position_ids)
        if fields.is_pinned():
            offsets = offsets.pin_memory()
        return cls(input_ids, labels, position_ids, document_ids, offsets)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`; copies of pinned tensors are asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """Return the batch in pinned (page-locked) memory."""
        return self._map(Tensor.pin_memory)

    def part(self, rank: int, ranks: int) -> "Batch":
        """Return this rank's part of each sequence, of several that share them; documents are whole on every rank."""
        ids, labels = (tensor.chunk(ranks, dim=1)[rank].contiguous() for tensor in (self.input_ids, self.labels))
        return replace(self, input_ids=ids, labels=labels)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            function(self.input_ids),
            function(self.labels),
            None if self.position_ids is None else function(self.position_ids),
            None if self.document_ids is None else function(self.document_ids),
            None if self.document_offsets is None else function(self.document_offsets),
        )


def _offsets(position_ids: Tensor) -> Tensor:
    """`document_offsets` of positions `[B, L]`."""
    starts = np.flatnonzero(position_ids.numpy() == 0)
    padded = 1 << (max(FEWEST, len(starts)) - 1).bit_length()
    offsets = np.full(padded + 1, position_ids.numel(), dtype=np.int32)
    offsets[: len(starts)] = starts
    return torch.from_numpy(offsets)


class Stream(Protocol):
    """Samples by their numbers."""

    def arrays(self, numbers: Sequence[int], doc_mask: bool) -> npt.NDArray[np.int64]:
        """The fields of a :class:`Batch`, `[2, B, L]`, or `[4, B, L]` with `doc_mask`."""
        ...


class HeldOut(Protocol):
    """Samples to validate on."""

    @property
    def num_samples(self) -> int:
        """How many there are."""
        ...

    def batch(self, numbers: Sequence[int], doc_mask: bool) -> Batch:
        """The samples of these numbers, one a row."""
        ...


class SampleStream:
    """An endless, blended, shuffled stream of samples, each a pure function of its number.

    Sample `number` of the stream is some sample of the corpus that the blend gives it; each corpus goes through all
    its samples, in an order of its own, before it repeats one. Nothing else enters: not the data-parallel size, the
    micro-batch or the number of steps, so resuming is one integer. How samples lie in a corpus is `packing`:
    :class:`~deconattn.data.loading.sample_layout.Concatenation` or :class:`~deconattn.data.loading.best_fit.BestFit`.

    corpora: pairs of corpus and weight.
    spare, verify: of best-fit packing's tables, see :class:`~deconattn.data.loading.best_fit.BestFit`.

    Raises :class:`UserError` for a corpus shorter than one sample and for corpora packed with different tokenizers.
    """

    def __init__(
        self,
        corpora: Sequence[tuple[TokenCorpus, float]],
        seq_len: int,
        seed: int,
        shuffle: bool = True,
        packing: Literal["concat", "best-fit"] = "concat",
        spare: Path | None = None,
        verify: bool = True,
    ) -> None:
        self.corpora = tuple(corpus for corpus, _ in corpora)
        self.seq_len = seq_len
        check_corpora(self.corpora, seq_len)
        self.layouts: tuple[SampleLayout, ...] = tuple(
            Concatenation(corpus, seq_len) if packing == "concat" else BestFit(corpus, seq_len, spare, verify)
            for corpus in self.corpora
        )
        self._blend, self._seed, self._shuffle = Blend([weight for _, weight in corpora]), seed, shuffle
        self._order = Order(self._blend, self.samples_per_corpus, seed, shuffle)
        self._answers = any(corpus.manifest.answers for corpus in self.corpora)

    def go_on(self, keys: Sequence[int], drawn: Sequence[int]) -> None:
        """Take up where other streams of the corpora ended.

        keys: each corpus's number among all that the streams have. drawn: its samples that they have drawn.
        """
        self._order = Order(self._blend, self.samples_per_corpus, self._seed, self._shuffle, keys, drawn)

    def drawn(self, number: int) -> tuple[int, ...]:
        """How many of the first `number` samples of the stream are each corpus's."""
        return self._blend.drawn(number)

    @property
    def samples_per_corpus(self) -> tuple[int, ...]:
        """Samples in one pass over each corpus."""
        return tuple(layout.num_samples for layout in self.layouts)

    @property
    def num_samples(self) -> int:
        """Samples in one pass over every corpus."""
        return sum(self.samples_per_corpus)

    def batch(self, numbers: Sequence[int], doc_mask: bool) -> Batch:
        """The samples of these numbers, each >= 0, one a row.

        With `doc_mask` positions restart with each document and no label crosses from one into the next. Raises
        :class:`UserError` for a shard that can no longer be read and for a token id beyond the vocabulary.
        """
        return Batch.of(torch.from_numpy(self.arrays(numbers, doc_mask)))

    def arrays(self, numbers: Sequence[int], doc_mask: bool) -> npt.NDArray[np.int64]:
        """The fields of :meth:`batch` as one array: `[2, B, L]`, or `[4, B, L]` with `doc_mask`.

        Of conversations the assistant's answers alone have labels.
        """
        located = [self._order(number) for number in numbers]
        fields = np.empty((4 if doc_mask else 2, len(located), self.seq_len), dtype=np.int64)
        input_ids, labels = fields[:2]
        begins = np.zeros((len(located), self.seq_len + 1), dtype=np.bool_) if doc_mask else None
        for row, (corpus, place) in enumerate(located):
            row_begins = None if begins is None else begins[row]
            self.layouts[corpus].fill(place, input_ids[row], labels[row], row_begins)
        if self._answers:
            labels[labels >= MARK] = IGNORED
            np.bitwise_and(input_ids, MARK - 1, out=input_ids)
        largest = max(int(input_ids.max(initial=0)), int(labels[:, -1].max(initial=0)))
        if largest >= self.corpora[0].manifest.vocab_size:
            for corpus, place in located:
                self.layouts[corpus].check(place)
        if begins is not None:
            labels[begins[:, 1:]] = IGNORED
            fields[2:] = _within_documents(begins[:, :-1])
        return fields


def check_corpora(corpora: Sequence[TokenCorpus], seq_len: int) -> None:
    """Raise :class:`UserError` for corpora that cannot be blended, or a length that no sequence has."""
    if not corpora:
        raise UserError(f"no corpus to train on; name a folder that {command('pack')} wrote")
    if seq_len < 1:
        raise UserError(f"sequence length {seq_len}: must be at least 1")
    first = corpora[0]
    for corpus in corpora:
        different = difference(first.folder, first.manifest, corpus.folder, corpus.manifest)
        if different is not None:
            raise UserError(
                f"{first.folder} and {corpus.folder} were packed with different tokenizers ({different}); "
                "pack one of them again with the other's"
            )


def _within_documents(begins: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions and document numbers, `[B, L]` each; a row opens document 0 whether or not a document begins there."""
    rows, length = begins.shape
    begins[:, 0] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=rows * length)
    first = np.searchsorted(starts, np.arange(rows) * length)
    numbers = np.arange(len(starts)) - np.repeat(first, np.diff(first, append=len(starts)))
    positions = np.arange(rows * length) - np.repeat(starts, lengths)
    return positions.reshape(rows, length), np.repeat(numbers, lengths).reshape(rows, length)


def parse_data_argument(argument: str) -> tuple[Path, float]:
    """Split `DIR:WEIGHT` into its two parts; the weight is 1 where there is none.

    Raises :class:`UserError` unless the weight is a positive, finite number.
    """
    folder, colon, weight = argument.rpartition(":")
    if not colon:
        folder, weight = argument, "1"
    elif Path(argument).is_dir():  # a folder may have a colon in its name
        return Path(argument), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not folder or not 0 < value < math.inf:
        raise UserError(f"data {argument!r}: write DIR or DIR:WEIGHT, the weight a number above 0")
    return Path(folder), value
