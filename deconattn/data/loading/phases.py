"""Streams one after another: a run's samples, numbered through, where its phases read other data or lengths."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deconattn.data.loading.batches import SampleStream, Stream


class Streams:
    """Samples of streams that follow one another; each batch is of one.

    Args:
        first: number of each stream's first sample.
    """

    def __init__(self, streams: Sequence[Stream], first: Sequence[int]) -> None:
        self._streams, self._first = tuple(streams), tuple(first)

    def arrays(self, numbers: Sequence[int], doc_mask: bool) -> npt.NDArray[np.int64]:
        """The fields of samples in a row, of one stream: :meth:`deconattn.data.SampleStream.arrays`."""
        here = bisect_right(self._first, numbers[0]) - 1
        return self._streams[here].arrays([number - self._first[here] for number in numbers], doc_mask)


def connect(streams: Sequence[SampleStream], samples: Sequence[int], identities: Sequence[Sequence[str]]) -> None:
    """Have each stream take up its corpora where the streams before left them.

    A corpus in the same length goes on with the samples that the pass has left. In another length it begins a new pass,
    as the samples of the one are not those of the other.

    Args:
        samples: read of each stream but the last.
        identities: what tells each stream's corpora apart.
    """
    keys: dict[str, int] = {}
    reached: dict[str, tuple[int, int, int]] = {}  # of a corpus: sequence length, samples drawn, samples in a pass
    for number, (stream, names) in enumerate(zip(streams, identities, strict=True)):
        sizes = stream.samples_per_corpus
        drawn = []
        for name, size in zip(names, sizes, strict=True):
            keys.setdefault(name, len(keys))
            length, before, old_size = reached.get(name, (stream.seq_len, 0, size))
            drawn.append(before if length == stream.seq_len else -(-before // old_size) * size)
        if number:
            stream.go_on([keys[name] for name in names], drawn)
        if number < len(streams) - 1:
            for name, begin, more, size in zip(names, drawn, stream.drawn(samples[number]), sizes, strict=True):
                reached[name] = stream.seq_len, begin + more, size
