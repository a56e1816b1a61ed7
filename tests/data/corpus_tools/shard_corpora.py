"""A tokenizer of single bytes and corpora packed with it, for the tests of the shards tool."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from deconattn.data.corpus_tools.new_corpus import new_corpus
from deconattn.data.manifest import ShardEntry, read_manifest, write_manifest
from deconattn.data.shards import ShardSchema
from deconattn.data.tokenizing.tokenizer import Tokenizer, load_tokenizer

EOS = 256
TEXTS = ["one", "two words", "naïve 日本語 🙂", "x", "four lines\n\n\nof text", "the end of it"]
VALIDATION = ["held out", "also held out"]


def write_tokenizer(path: Path, normalizer: str = "", separator: str = "<|endoftext|>") -> Path:
    """A tokenizer.json: id N is byte N in the order of its alphabet, 256 the separator."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(alphabet)}
    library = Library(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    if normalizer == "lowercase":
        library.normalizer = normalizers.Lowercase()
    library.add_special_tokens([separator])
    library.save(str(path))
    return path


def encode(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.uint32]:
    """Ids with the separator."""
    return np.append(tokenizer.encode_batch([text])[0], np.uint32(tokenizer.eos_token_id))


def make_corpus(
    folder: Path,
    tokenizer_file: Path,
    train: Sequence[str] = TEXTS,
    val: Sequence[str] = VALIDATION,
    shard_tokens: int = 40,
    source: str = "test",
) -> Path:
    """Pack texts; 40 tokens a shard give two or three documents each."""
    tokenizer = load_tokenizer(tokenizer_file)
    schema = ShardSchema(
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        tokenizer.eos_token_id,
        source,
        special_tokens=tokenizer.special_tokens,
    )
    with new_corpus(folder, schema, shard_tokens) as corpus:
        tokenizer.save(corpus.folder)
        for split, texts in (("train", train), ("val", val)):
            for text in texts:
                corpus.append(split, encode(tokenizer, text))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def change_entry(folder: Path, name: str, **changes: object) -> None:
    """Make the manifest say something else of a shard."""
    manifest = read_manifest(folder)
    shards = tuple(dataclasses.replace(e, **changes) if e.name == name else e for e in manifest.shards)  # type: ignore
    write_manifest(folder, dataclasses.replace(manifest, shards=shards))


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a shard and make the manifest agree about its bytes, so that only what is inside can show the damage."""
    (folder / name).write_bytes(content)
    change_entry(folder, name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def entry_of(folder: Path, name: str) -> ShardEntry:
    """The manifest's entry of a shard."""
    return next(entry for entry in read_manifest(folder).shards if entry.name == name)


def positions(path: Path, number: int) -> dict[str, int]:
    """Where things lie in a shard: a record batch's bounds and values, and the footer."""
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
    batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(number)
    _, bounds, _, values = batch.column(0).buffers()
    footer = content.size - 10 - int.from_bytes(content[-10:-6].to_pybytes(), "little")
    return {"bounds": bounds.address - content.address, "values": values.address - content.address, "footer": footer}


def put(folder: Path, name: str, position: int, value: bytes) -> None:
    """Overwrite bytes of a shard behind the manifest's back, checksum included."""
    content = bytearray((folder / name).read_bytes())
    content[position : position + len(value)] = value
    rewrite(folder, name, bytes(content))
