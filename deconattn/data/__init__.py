"""From text to batches: packing corpora into Arrow shards, and reading them back sample by sample.

In the order in which data flows: `reading` (documents out of files), `tokenizing` (text to ids), `packing` (documents
to shards), `shards` and `manifest` (the packed format), `corpus_tokenizer` (the tokenizer in a packed folder),
`corpus_tools` (the commands that inspect and rewrite packed corpora), `corpus` (a split as one sequence of tokens, over
`mapped` files), `loading` (samples and batches out of it).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deconattn.data.corpus import TokenCorpus
    from deconattn.data.loading.batches import Batch, SampleStream, parse_data_argument
    from deconattn.data.loading.loader import Prefetcher
    from deconattn.data.manifest import Manifest, read_manifest
    from deconattn.data.packing.pack import PackConfig, PackSummary, pack_demo
    from deconattn.data.shards import verify_checksums
    from deconattn.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
    from deconattn.data.tokenizing.training import train_tokenizer

_HOMES = {
    "Batch": "loading.batches",
    "SampleStream": "loading.batches",
    "parse_data_argument": "loading.batches",
    "TokenCorpus": "corpus",
    "Manifest": "manifest",
    "read_manifest": "manifest",
    "PackConfig": "packing.pack",
    "PackSummary": "packing.pack",
    "pack_demo": "packing.pack",
    "Prefetcher": "loading.loader",
    "verify_checksums": "shards",
    "Tokenizer": "tokenizing.tokenizer",
    "load_tokenizer": "tokenizing.tokenizer",
    "train_tokenizer": "tokenizing.training",
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
