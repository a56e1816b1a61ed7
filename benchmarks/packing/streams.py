"""The token streams that packers leave, each read from its own format, and where two of them differ first.

Nothing of the project reads here, ours included: what is compared is what lies on the disk.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2"}


@dataclass(frozen=True)
class TokenStream:
    """Documents end to end, each with its separator: ids `[tokens]`, and tokens of each document `[documents]`."""

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]


def of_shards(folder: Path) -> TokenStream:
    """The training split of a folder that `tools/pack.py` wrote."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    columns = []
    for shard in manifest["shards"]:
        if shard["split"] == "train":
            with pa.memory_map(str(folder / shard["name"])) as file:
                columns += pa.ipc.open_file(file).read_all().column("tokens").chunks
    return _of_lists(columns)


def of_dataset(folder: Path) -> TokenStream:
    """Column `input_ids` of a dataset that `save_to_disk` wrote."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    columns = []
    for part in state["_data_files"]:
        with pa.memory_map(str(folder / part["filename"])) as file:
            columns += pa.ipc.open_stream(file).read_all().column("input_ids").chunks
    return _of_lists(columns)


def of_megatron(prefix: Path) -> TokenStream:
    """Megatron's PREFIX.bin and PREFIX.idx; raises ValueError if they are not."""
    index = Path(f"{prefix}.idx").read_bytes()
    if index[:9] != MEGATRON_MAGIC:
        raise ValueError(f"{prefix}.idx is not an index of Megatron's")
    kind = MEGATRON_TYPES[index[17]]
    sequences = int.from_bytes(index[18:26], "little")
    lengths = np.frombuffer(index, "<i4", sequences, offset=34).astype(np.int64)
    return TokenStream(np.fromfile(f"{prefix}.bin", f"<{kind}"), lengths)


def of_arrays(folder: Path) -> TokenStream:
    """`tokens.npy` and `lengths.npy`."""
    return TokenStream(np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "lengths.npy"))


def first_difference(ours: TokenStream, theirs: TokenStream) -> str | None:
    """Where two streams differ first, in words; None if they are identical, documents and ids."""
    common = min(len(ours.lengths), len(theirs.lengths))
    unequal = np.flatnonzero(ours.lengths[:common] != theirs.lengths[:common])
    agreeing = int(unequal[0]) if len(unequal) else common  # documents that begin at the same place and are as long
    end = int(ours.lengths[:agreeing].sum())
    for start in range(0, end, 2**24):  # a comparison needs a temporary array
        stop = min(end, start + 2**24)
        differing = np.flatnonzero(ours.tokens[start:stop] != theirs.tokens[start:stop])
        if len(differing):
            at = start + int(differing[0])
            document = int(np.searchsorted(ours.lengths.cumsum(), at, side="right"))
            token = at - int(ours.lengths[:document].sum())
            return f"document {document}, token {token}: {ours.tokens[at]} and {theirs.tokens[at]}"
    if len(unequal):
        return f"document {agreeing}: {ours.lengths[agreeing]} and {theirs.lengths[agreeing]} tokens"
    if len(ours.lengths) != len(theirs.lengths):
        return f"{len(ours.lengths)} and {len(theirs.lengths)} documents"
    if len(ours.tokens) != len(theirs.tokens):
        return f"{len(ours.tokens)} and {len(theirs.tokens)} tokens"
    return None


def _of_lists(columns: list[pa.Array]) -> TokenStream:
    """Of list arrays, one after the other."""
    tokens = [column.flatten().to_numpy() for column in columns]
    lengths = [column.value_lengths().to_numpy() for column in columns]
    return TokenStream(
        np.concatenate(tokens) if tokens else np.zeros(0, np.uint16),
        np.concatenate(lengths).astype(np.int64) if lengths else np.zeros(0, np.int64),
    )
