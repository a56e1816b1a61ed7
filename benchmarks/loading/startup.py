"""What a rank does to open a large corpus: seconds, memory, bytes read and files looked at, before and now, in one run.

    python benchmarks/loading/startup.py --shards 5000 --documents-per-shard 2000

The corpus is one shard under many names (hard links), of documents whose lengths are log-normal. "Before" is what each
rank did twice, once to check its flags and once to train: read the manifest, look at every shard's size, and pack
(benchmarks/loading/best_fit_before.py). Now rank 0 does that once, the first job on a corpus makes the table, and the
other ranks get the manifest from it. Each row is a process of its own, its imports not counted.
"""

import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.loading.best_fit_before import whole_tables
from benchmarks.machine import RESULTS, ROOT, describe, markdown_table, write_result
from deconattn.cli import parse, run
from deconattn.data import TokenCorpus
from deconattn.data.loading.best_fit_table import open_table
from deconattn.data.manifest import TABLES_NAME, Manifest, read_checked, read_manifest, write_manifest
from deconattn.data.shards import ShardSchema, ShardWriter
from deconattn.errors import UserError

TOLD = "manifest.pickle"
"""What rank 0 sends to the others."""


@dataclass(frozen=True)
class Arguments:
    """What a rank does to open a large corpus, before and now."""

    shards: int = 5000
    """Shards of the corpus."""
    documents_per_shard: int = 2000
    """Documents in each."""
    seq_len: int = 2048
    """Tokens in a sequence."""
    out: Path = RESULTS
    """Folder of startup.json and startup.md."""

    def __post_init__(self) -> None:
        if min(self.shards, self.documents_per_shard, self.seq_len) < 1:
            raise UserError("--shards, --documents-per-shard and --seq-len must be above zero")


def make_corpus(folder: Path, shards: int, documents: int) -> None:
    """Write one shard under many names, and their manifest."""
    schema = ShardSchema("synthetic", 1000, eos_token_id=0, source="synthetic")
    lengths = np.random.default_rng(0).lognormal(5.5, 1.3, documents).astype(np.int64).clip(1, 100_000)
    with ShardWriter(folder / "train-00000.arrow", "train", schema) as writer:
        writer.extend(np.ones(int(lengths.sum()), dtype=np.uint16), lengths)
    assert writer.entry is not None
    entries = [replace(writer.entry, name=f"train-{number:05d}.arrow") for number in range(shards)]
    for entry in entries[1:]:
        (folder / entry.name).hardlink_to(folder / entries[0].name)
    write_manifest(folder, schema.manifest(tuple(entries)))


def before(folder: Path, seq_len: int) -> int:
    """What every rank did; returns how many files it looked at."""
    looked_at = 0
    for _ in range(2):
        corpus = TokenCorpus(folder)
        whole_tables(corpus.document_lengths(), seq_len)
        looked_at += 1 + 2 * len(corpus.entries)  # each size, and each shard opened for its lengths
    return looked_at


def first_job(folder: Path, seq_len: int) -> int:
    """Rank 0 of the first job on a corpus."""
    manifest = read_checked(folder)
    (folder / TOLD).write_bytes(pickle.dumps(manifest))
    open_table(TokenCorpus(folder, manifest=manifest), seq_len, None, verify=True)
    return 2 + 3 * len(manifest.shards)  # sizes, and each shard opened in both passes


def rank_0(folder: Path, seq_len: int) -> int:
    """Rank 0 of a later one: it reads the whole table once, for its checksum."""
    manifest = read_checked(folder)
    open_table(TokenCorpus(folder, manifest=manifest), seq_len, None, verify=True)
    return 2 + len(manifest.shards)


def other_rank(folder: Path, seq_len: int) -> int:
    """Any other rank, once it has been told the manifest."""
    manifest: Manifest = pickle.loads((folder / TOLD).read_bytes())
    open_table(TokenCorpus(folder, manifest=manifest), seq_len, None, verify=False)
    return 1


ROWS: dict[str, Callable[[Path, int], int]] = {
    "every rank, before": before,
    "rank 0, first job": first_job,
    "rank 0, later": rank_0,
    "other ranks": other_rank,
}


def measure(name: str, folder: Path, seq_len: int) -> dict[str, Any]:
    """Seconds, peak memory beyond that of the imports and bytes read, in MiB, and files looked at, of a new process."""
    read_manifest(folder)  # its imports
    memory, read, begun = _peak(), _read_bytes(), time.perf_counter()
    looked_at = ROWS[name](folder, seq_len)
    return {
        "seconds": round(time.perf_counter() - begun, 3),
        "memory_mib": round(_peak() - memory, 1),
        "read_mib": round((_read_bytes() - read) / 2**20, 2),
        "files_looked_at": looked_at,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read_bytes() -> int:
    """By calls of read; pages of maps are not among them."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    """Measure all, and write the result."""
    arguments = parse(Arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder, arguments.shards, arguments.documents_per_shard)
        rows = {}
        for row in ROWS:
            words = [sys.executable, str(Path(__file__)), "--row", row, str(folder), str(arguments.seq_len)]
            done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
            rows[row] = json.loads(done.stdout)
        [table] = (folder / TABLES_NAME).glob("*.table")
        size = table.stat().st_size
    told = {"documents": arguments.shards * arguments.documents_per_shard, "table_mib": round(size / 2**20, 1)}
    header = ["", "seconds", "memory, MiB", "read, MiB", "files looked at"]
    cells = [[row, *map(str, values.values())] for row, values in rows.items()]
    text = (
        f"{told['documents']:,} documents in {arguments.shards:,} shards, sequences of {arguments.seq_len}; table of "
    )
    print(markdown_table(header, cells))
    write_result(arguments.out / "startup.json", {**told, "rows": rows})
    page = f"# Opening a corpus\n\n{describe()}\n\n{text}{told['table_mib']} MiB.\n\n{markdown_table(header, cells)}\n"
    (arguments.out / "startup.md").write_text(page)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        row, folder, seq_len = sys.argv[2:]
        print(json.dumps(measure(row, Path(folder), int(seq_len))))
    else:
        run(main)
