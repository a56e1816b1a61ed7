"""From text to batches: packing corpora into Arrow shards, and reading them back sample by sample.

In the order in which data flows: `inputs`, `blocks` and `parse` (documents out of files), `tokenizer` and
`tokenizer_training`, `encode` (worker processes), `split` (validation), `shards` and `manifest` (the packed format),
`output` and `pack` (the whole); then `corpus` (a split as one sequence of tokens, over `mapped` files), `layout` and
`best_fit` (how samples lie in it), `sampler` (which sample comes when), `batches`, and `loading` (ahead of their use,
by `prefetch` or `loader_workers`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deconattn.data.batches import Batch, SampleStream, parse_data_argument
    from deconattn.data.corpus import TokenCorpus
    from deconattn.data.manifest import Manifest, read_manifest
    from deconattn.data.pack import PackConfig, PackSummary, pack_demo
    from deconattn.data.prefetch import Prefetcher
    from deconattn.data.shards import verify_checksums
    from deconattn.data.tokenizer import Tokenizer, load_tokenizer
    from deconattn.data.tokenizer_training import train_tokenizer

_HOMES = {
    "Batch": "batches",
    "SampleStream": "batches",
    "parse_data_argument": "batches",
    "TokenCorpus": "corpus",
    "Manifest": "manifest",
    "read_manifest": "manifest",
    "PackConfig": "pack",
    "PackSummary": "pack",
    "pack_demo": "pack",
    "Prefetcher": "prefetch",
    "verify_checksums": "shards",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "train_tokenizer": "tokenizer_training",
}

__all__ = [
    "Batch",
    "Manifest",
    "PackConfig",
    "PackSummary",
    "Prefetcher",
    "SampleStream",
    "TokenCorpus",
    "Tokenizer",
    "load_tokenizer",
    "pack_demo",
    "parse_data_argument",
    "read_manifest",
    "train_tokenizer",
    "verify_checksums",
]


def __getattr__(name: str) -> Any:
    # On demand: a tokenizing worker imports this package and must not pay for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
