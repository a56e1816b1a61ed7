"""The contestants of `load.py`: each turns the same documents into its own format, then gives batches at random.

A batch is two int64 tensors `[batch_size, seq_len]`, inputs and labels, for everybody. What a contestant is set to
is what its users' recipes say: Megatron without attention masks, llm-foundry's conversion after mosaicml-streaming,
litgpt's after litdata.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from deconattn.data import SampleStream, TokenCorpus
from deconattn.data.loading.loader import open_loader

OURS = "DeconAttn"
SEED = 1
CHUNK_BYTES = 2**26
DIRECT = -1
"""In place of a number of workers: samples by their numbers, no loader."""


@dataclass(frozen=True)
class Spec:
    """Who reads what, how."""

    name: str
    corpus: str
    """A packed folder."""
    copy: str
    """Where the contestant's own copy of the corpus is, or will be."""
    workers: int
    """Worker processes; 0 is our thread and the others' DataLoader without workers; :data:`DIRECT`."""
    seq_len: int
    batch_size: int
    megatron: str = ""
    """A checkout of Megatron-LM whose `helpers_cpp` is compiled."""


Pair = tuple[Tensor, Tensor]
Dataset = Any


def documents(spec: Spec) -> Iterator[np.ndarray]:
    """The corpus' documents, int64 `[n]` each, in order."""
    corpus = TokenCorpus(spec.corpus)
    start = 0
    for length in corpus.document_lengths().tolist():
        yield corpus.read(start, length)
        start += length


def samples(spec: Spec) -> Iterator[np.ndarray]:
    """Its tokens cut into samples of `seq_len + 1`, int64."""
    corpus, length = TokenCorpus(spec.corpus), spec.seq_len + 1
    for start in range(0, corpus.num_tokens - length + 1, length):
        yield corpus.read(start, length)


def ours(spec: Spec) -> Generator[Pair, None, None]:
    """Our own loader."""
    stream = SampleStream([(TokenCorpus(spec.corpus), 1.0)], spec.seq_len, SEED)
    size = spec.batch_size
    numbers = (range(start, start + size) for start in range(0, stream.num_samples - size + 1, size))
    if spec.workers == DIRECT:
        for some in numbers:
            batch = stream.batch(some, doc_mask=False)
            yield batch.input_ids, batch.labels
        return
    with closing(open_loader(stream, numbers, False, spec.workers, ahead=4, pin=False)) as loader:
        for _ in range(stream.num_samples // size):
            batch = loader.take(1)[0]
            yield batch.input_ids, batch.labels


class _MegatronTokenizer:
    """The little that GPTDataset asks of a tokenizer."""

    unique_identifiers: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.eod, self.pad = vocab_size, 0, -1


def write_megatron(spec: Spec) -> None:
    """One document a sequence of the .bin and .idx."""
    sys.path.insert(0, spec.megatron)
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    Path(spec.copy).mkdir(parents=True)
    builder = IndexedDatasetBuilder(f"{spec.copy}/corpus.bin", dtype=np.uint16)
    for document in documents(spec):
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(f"{spec.copy}/corpus.idx")


def megatron(spec: Spec) -> Generator[Pair, None, None]:
    """GPTDataset through its builder, with the sampler of pretrain_gpt.py."""
    sys.path.insert(0, spec.megatron)
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    corpus = TokenCorpus(spec.corpus)
    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=spec.seq_len,
        blend=([f"{spec.copy}/corpus"], None),
        split="1,0,0",
        path_to_cache=f"{spec.copy}/cache",
        tokenizer=_MegatronTokenizer(corpus.manifest.vocab_size),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    wanted = (corpus.num_tokens - 1) // spec.seq_len
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [wanted, 0, 0], lambda: True, config).build()[0]
    size = spec.batch_size
    order = [range(start, start + size) for start in range(0, wanted - size + 1, size)]  # the dataset shuffles
    for batch in _direct(dataset, order) if spec.workers == DIRECT else _loader(dataset, spec, batch_sampler=order):
        yield batch["tokens"], batch["labels"]


def write_streaming(spec: Spec) -> None:
    """A sample of `seq_len + 1` tokens a row, uncompressed."""
    from streaming import MDSWriter

    with MDSWriter(out=spec.copy, columns={"tokens": "ndarray:uint16"}, size_limit=CHUNK_BYTES) as writer:
        for sample in samples(spec):
            writer.write({"tokens": sample.astype(np.uint16)})


def streaming(spec: Spec) -> Generator[Pair, None, None]:
    """StreamingDataset on a local folder."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Tokens(StreamingDataset):
        def __getitem__(self, at: int) -> Tensor:
            return torch.from_numpy(super().__getitem__(at)["tokens"].astype(np.int64))

    dataset = Tokens(local=spec.copy, shuffle=True, batch_size=spec.batch_size, shuffle_seed=SEED)
    if spec.workers == DIRECT:
        batches = _direct(dataset, _shuffled(len(dataset), spec))
    else:
        batches = _loader(dataset, spec, batch_size=spec.batch_size)
    yield from _shifted(batches)


def write_litdata(spec: Spec) -> None:
    """All tokens end to end, in chunks."""
    from litdata.streaming import Cache, TokensLoader

    cache = Cache(spec.copy, chunk_bytes=CHUNK_BYTES, item_loader=TokensLoader(spec.seq_len + 1))
    for number, document in enumerate(documents(spec)):
        cache[number] = torch.from_numpy(document.astype(np.int32))
    cache.done()
    cache.merge()


def litdata(spec: Spec) -> Generator[Pair, None, None]:
    """StreamingDataset with TokensLoader, by its own StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import TokensLoader

    dataset = StreamingDataset(spec.copy, item_loader=TokensLoader(spec.seq_len + 1), shuffle=True, seed=SEED)
    if spec.workers == DIRECT:
        batches = _direct(dataset, _shuffled(len(dataset), spec))
    else:
        batches = StreamingDataLoader(dataset, batch_size=spec.batch_size, num_workers=spec.workers)
    yield from _shifted(batches)


def _shuffled(size: int, spec: Spec) -> list[list[int]]:
    order = np.random.default_rng(SEED).permutation(size).tolist()
    return [order[start : start + spec.batch_size] for start in range(0, size, spec.batch_size)]


def _direct(dataset: Dataset, order: Any) -> Iterator[Any]:
    for numbers in order:
        yield default_collate([dataset[number] for number in numbers])


def _loader(dataset: Dataset, spec: Spec, **named: Any) -> Iterator[Any]:
    yield from DataLoader(dataset, num_workers=spec.workers, **named)


def _shifted(batches: Any) -> Generator[Pair, None, None]:
    for tokens in batches:
        yield tokens[:, :-1].contiguous().long(), tokens[:, 1:].contiguous().long()


@dataclass(frozen=True)
class Contestant:
    """How one reads, and how it writes its copy (None: it reads the packed folder)."""

    read: Callable[[Spec], Generator[Pair, None, None]]
    write: Callable[[Spec], None] | None = None
    package: str = ""
    """What must be importable."""


CONTESTANTS = {
    OURS: Contestant(ours),
    "Megatron GPTDataset": Contestant(megatron, write_megatron, "megatron.core"),
    "mosaicml-streaming": Contestant(streaming, write_streaming, "streaming"),
    "litdata": Contestant(litdata, write_litdata, "litdata"),
}
