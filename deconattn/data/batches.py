"""Sample numbers in, training batches out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deconattn.data.corpus import TokenCorpus
from deconattn.data.sampler import Blend, make_key, permute
from deconattn.errors import UserError
from deconattn.ops.cross_entropy import IGNORED


@dataclass(frozen=True)
class Batch:
    """B sequences of L tokens. `position_ids` and `document_ids` are there only with document masks.

    input_ids: int64 `[B, L]`.
    labels: int64 `[B, L]`, the next token, -100 where ignored.
    position_ids: int64 `[B, L]`, 0 at a document's first token and at a row's.
    document_ids: int64 `[B, L]`, 0, 1, ... within each row.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None = None
    document_ids: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`; nobody waits for tensors that are pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            function(self.input_ids),
            function(self.labels),
            None if self.position_ids is None else function(self.position_ids),
            None if self.document_ids is None else function(self.document_ids),
        )


class SampleStream:
    """An endless, blended, shuffled stream of samples, each a pure function of its number.

    Sample i of a corpus covers its tokens `i * seq_len .. (i + 1) * seq_len`, both ends included. Sample `number`
    of the stream is some sample of the corpus that the blend gives it; each corpus goes through all its samples,
    in an order of its own, before it repeats one. Nothing else enters: not the data-parallel size, the
    micro-batch or the number of steps, so resuming is one integer.

    corpora: pairs of corpus and weight. Raises :class:`UserError` for a corpus shorter than one sample and for
    corpora packed with different tokenizers.
    """

    def __init__(
        self, corpora: Sequence[tuple[TokenCorpus, float]], seq_len: int, seed: int, shuffle: bool = True
    ) -> None:
        if not corpora:
            raise UserError("no corpus to train on; name a folder that tools/pack.py wrote")
        if seq_len < 1:
            raise UserError(f"sequence length {seq_len}: must be at least 1")
        self.corpora = tuple(corpus for corpus, _ in corpora)
        self.seq_len, self.seed, self.shuffle = seq_len, seed, shuffle
        first = self.corpora[0]
        for corpus in self.corpora:
            if corpus.num_tokens <= seq_len:
                raise UserError(
                    f"{corpus.folder} ({corpus.split}) has {corpus.num_tokens} tokens, too few for one sequence of "
                    f"{seq_len} and its last label; shorten the sequence or pack more text"
                )
            ours, theirs = corpus.manifest, first.manifest
            if (ours.tokenizer_fingerprint, ours.eos_token_id) != (theirs.tokenizer_fingerprint, theirs.eos_token_id):
                raise UserError(
                    f"{first.folder} and {corpus.folder} were packed with different tokenizers; "
                    "pack one of them again with the other's"
                )
        self.blend = Blend([weight for _, weight in corpora])
        self.samples_per_corpus = tuple((corpus.num_tokens - 1) // seq_len for corpus in self.corpora)

    @property
    def num_samples(self) -> int:
        """Samples in one pass over every corpus."""
        return sum(self.samples_per_corpus)

    def sample(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens `[seq_len + 1]` of sample `number` >= 0, and the offsets among them that begin a document."""
        corpus, start = self._locate(number)
        length = self.seq_len + 1
        return corpus.read(start, length), corpus.document_starts(start, length)

    def batch(self, numbers: Sequence[int], doc_mask: bool) -> Batch:
        """The samples of these numbers, one a row.

        With `doc_mask` positions restart with each document and no label crosses from one into the next.
        """
        located = [self._locate(number) for number in numbers]
        tokens = np.stack([corpus.read(start, self.seq_len + 1) for corpus, start in located])
        input_ids = torch.from_numpy(tokens[:, :-1].copy())
        labels = torch.from_numpy(tokens[:, 1:].copy())
        if not doc_mask:
            return Batch(input_ids, labels)
        begins = np.zeros(tokens.shape, dtype=bool)
        for row, (corpus, start) in enumerate(located):
            begins[row, corpus.document_starts(start, self.seq_len + 1)] = True
        labels[torch.from_numpy(begins[:, 1:].copy())] = IGNORED
        begins = begins[:, :-1]
        begins[:, 0] = False  # a row opens document 0 whether or not a document begins there
        columns = np.arange(self.seq_len, dtype=np.int64)
        latest = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
        return Batch(
            input_ids,
            labels,
            position_ids=torch.from_numpy(columns - latest),
            document_ids=torch.from_numpy(np.cumsum(begins, axis=1, dtype=np.int64)),
        )

    def _locate(self, number: int) -> tuple[TokenCorpus, int]:
        """The corpus of sample `number`, and the token at which the sample starts in it."""
        if number < 0:
            raise IndexError(f"sample number {number} is negative")
        which, drawn = self.blend(number)
        size = self.samples_per_corpus[which]
        epoch, place = divmod(drawn, size)
        if self.shuffle:
            place = permute(place, size, make_key(self.seed, which, epoch))
        return self.corpora[which], place * self.seq_len


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
