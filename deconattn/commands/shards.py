"""Look after packed corpora: shards COMMAND ...

What a corpus holds, whether it is sound, and its documents as text:

    shards info data/web
    shards verify data/web
    shards decode data/web --document 12

One of several, shards of another size, and out of other programs' token ids:

    shards merge data/all data/web data/books
    shards split data/web data/small --shard-tokens 10000000 --tokens 50000000
    shards convert megatron_text_document data/web --tokenizer tokenizer.json
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.bar import Bar
from rich.table import Table

from deconattn.cli import complaints_in_one_line, completed_name, show
from deconattn.errors import UserError
from deconattn.program import command as spelled
from deconattn.shown import data_stream, one_line

if TYPE_CHECKING:
    from deconattn.data.corpus_tools.info import CorpusInfo, SplitInfo
    from deconattn.data.manifest import Manifest

_Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
_Folders = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR...")]
_Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
_Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
_SHARDS_SHOWN = 20
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Info:
    """Say what packed corpora hold: documents, tokens, lengths, tokenizer, checksums."""

    folders: _Folders
    """Packed corpora."""
    json: _Flag = False
    """Print JSON: a list with an object a corpus, every shard included."""


@dataclass(frozen=True)
class Verify:
    """Check all of packed corpora and list every fault. The exit code is 1 if there are any."""

    folders: _Folders
    """Packed corpora."""
    sample: int = 200
    """Documents of each, drawn with a fixed seed, to decode and encode again."""


@dataclass(frozen=True)
class Merge:
    """Make one corpus of several that have the same tokenizer. Shards are linked where that is possible."""

    out: _Out
    """The folder to write. It appears when everything is in it."""
    folders: _Folders
    """Packed corpora, in the order that their documents are to have."""


@dataclass(frozen=True)
class Recut:
    """Write a corpus, or the beginning of one, in shards of another size."""

    folder: _Folder
    """A packed corpus."""
    out: _Out
    """The folder to write. It appears when everything is in it."""
    shard_tokens: int = 100_000_000
    """Tokens after which a new shard begins; a document is never cut."""
    documents: Annotated[str, tyro.conf.arg(metavar="A:B")] = ":"
    """Take only documents A to B - 1 of the training split, counted from 0. The validation split stays whole."""
    tokens: int | None = None
    """Stop the training split after the document that reaches so many tokens."""


@dataclass(frozen=True)
class Decode:
    """Print documents as text."""

    folder: _Folder
    """A packed corpus."""
    document: int = 0
    """The first document to look at, counted from 0."""
    split: Literal["train", "val"] = "train"
    """Split to read."""
    count: int | None = None
    """Number of documents to print; by default one, or with --grep all."""
    ids: _Flag = False
    """Print the ids too."""
    grep: Annotated[str, tyro.conf.arg(constructor=str, metavar="TEXT")] = ""
    """Print number and an excerpt of the documents that contain this."""


@dataclass(frozen=True)
class Convert:
    """Make a corpus of token ids that Megatron-LM or Hugging Face datasets hold. Separators are added where missing."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The prefix of a Megatron-LM .bin and .idx, or a dataset of ids: an Arrow or Parquet file or a folder of them,
    for example one that save_to_disk wrote."""
    out: _Out
    """The folder to write. It appears when everything is in it."""
    tokenizer: str
    """The tokenizer that made the ids: a tokenizer.json, a SentencePiece .model or a folder holding one of them."""
    eos: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = None
    """The token after each document, where the tokenizer and the files beside it do not name the right one."""
    column: str = "input_ids"
    """Column of a dataset that holds the ids."""
    split: str | None = None
    """Which split to take of a dataset that was saved with several, such as train."""
    pieces: _Flag = False
    """The dataset's rows are pieces of one long sequence: documents end at separators, not where rows do."""
    val_fraction: float = 0.01
    """Part of the documents held out as the validation split. 0 holds out none."""
    shard_tokens: int = 100_000_000
    """Tokens after which a new shard begins; a document is never cut."""


Command = (
    Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Recut, tyro.conf.subcommand("split")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)


def main(words: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    with complaints_in_one_line():
        config = (tyro.conf.OmitArgPrefixes,)
        command: object = tyro.cli(Command, prog=completed_name(spelled("shards"), words), args=words, config=config)
    match command:
        case Info():
            info(command)
        case Verify():
            return verify(command)
        case Merge():
            merge(command)
        case Recut():
            split(command)
        case Decode():
            decode(command)
        case Convert():
            convert(command)
    return 0


def info(command: Info) -> None:
    """Print what each corpus holds."""
    from deconattn.data.corpus_tools.info import corpus_info

    _require(command.folders)
    found = (corpus_info(folder) for folder in command.folders)
    if command.json:
        print(json.dumps([corpus.as_dict() for corpus in found], indent=2))
        return
    for corpus in found:
        _show_corpus(corpus)


def verify(command: Verify) -> int:
    """Print the faults of each corpus and a line that sums it up; 1 if there were any."""
    from deconattn.data.corpus_tools.verify import verify as verify_folder

    _require(command.folders)
    if command.sample < 0:
        raise UserError(f"--sample {command.sample}: must be at least 0")
    faults = 0
    for folder in command.folders:
        verdict = verify_folder(folder, command.sample)
        faults += len(verdict.faults)
        for line in (*verdict.faults, *(f"note: {note}" for note in verdict.notes), verdict):
            print(one_line(line))
    return 1 if faults else 0


def merge(command: Merge) -> None:
    """Merge and say what was written."""
    from deconattn.data.corpus_tools.rewrite import merge as merge_folders

    print(f"merged {command.out}: {_counts(merge_folders(command.out, command.folders))}")


def split(command: Recut) -> None:
    """Split and say what was written."""
    from deconattn.data.corpus_tools.rewrite import parse_range, recut

    documents = parse_range(command.documents)
    manifest = recut(command.folder, command.out, command.shard_tokens, documents, command.tokens)
    print(f"split {command.out}: {_counts(manifest)}")


def decode(command: Decode) -> None:
    """Print documents, or where a text is in them."""
    from deconattn.data.corpus_tools.decode import decode as decode_folder

    if command.count is not None and command.count < 1:
        raise UserError(f"--count {command.count}: must be at least 1")
    documents = decode_folder(command.folder, command.split, command.document)
    if command.grep:
        containing = (document for document in documents if command.grep in document.text)
        for document in islice(containing, command.count):
            print(f"{document.number}: {one_line(document.excerpt(command.grep))}")
        return
    for document in islice(documents, command.count or 1):
        print(f"--- {command.split} document {document.number}, {len(document.ids):,} tokens")
        if command.ids:
            print(*document.ids.tolist())
        print(document.text, file=data_stream(sys.stdout))


def convert(command: Convert) -> None:
    """Convert and say what was written."""
    from deconattn.data.corpus_tools.convert_ids import convert as convert_source
    from deconattn.data.packing.selection import validation_note
    from deconattn.data.reading.input_files import counted_kinds

    result = convert_source(
        command.source,
        command.out,
        command.tokenizer,
        val_fraction=command.val_fraction,
        shard_tokens=command.shard_tokens,
        column=command.column,
        pieces=command.pieces,
        eos=command.eos,
        data_split=command.split,
    )
    assert result.manifest is not None
    print(f"converted {command.out} from {result.kind}: {_counts(result.manifest)}")
    if result.added:
        print(f"  separators added: {result.added:,}")
    if result.empty:
        print(f"  empty documents left out: {result.empty:,}")
    if result.left_out:
        print(f"  files left out: {counted_kinds(result.left_out)}")
    if note := validation_note(result.manifest, command.val_fraction):
        print(f"  note: {note}")


def _require(folders: tuple[Path, ...]) -> None:
    if not folders:
        raise UserError("no corpus; name packed folders")


def _counts(manifest: "Manifest") -> str:
    documents, tokens = sum(s.documents for s in manifest.shards), sum(s.tokens for s in manifest.shards)
    return f"{documents:,} documents, {tokens:,} tokens, {len(manifest.shards):,} shards"


def _show_corpus(corpus: "CorpusInfo") -> None:
    tokenizer = corpus.tokenizer
    separator = f" {tokenizer.separator!r}" if tokenizer.separator else ""
    print(one_line(f"{corpus.folder}: packed from {corpus.source}; {corpus.dtype}, format {corpus.format_version}"))
    begun = "" if tokenizer.bos_token_id is None else f", documents begin with {tokenizer.bos_token_id}"
    print(
        f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, separator {tokenizer.eos_token_id}{separator}"
        f"{begun}; special tokens spelled in a text are read as {tokenizer.special_tokens}"
    )
    other = "" if tokenizer.matches_manifest else " (the manifest has another)"
    print(f"  fingerprint {tokenizer.fingerprint}{other}")
    for name, part in corpus.splits.items():
        counts = f"{part.documents:,} documents, {part.tokens:,} tokens, {part.shards:,} shards"
        print(f"{name}: {counts}, {part.bytes:,} bytes")
        print(
            f"  tokens a document: {part.shortest:,} to {part.longest:,}, median {part.median:,.0f}, "
            f"mean {part.mean:,.1f}"
        )
        show(_histogram(part))
    table = Table("shard", "documents", "tokens", "bytes", "largest id", "SHA-256")
    for shard in corpus.shards[:_SHARDS_SHOWN]:
        numbers = (shard.documents, shard.tokens, shard.bytes, shard.max_token_id)
        table.add_row(one_line(shard.name), *(f"{number:,}" for number in numbers), shard.sha256)
    show(table)
    if len(corpus.shards) > _SHARDS_SHOWN:
        print(f"and {len(corpus.shards) - _SHARDS_SHOWN:,} shards more (--json lists all)")


def _histogram(part: "SplitInfo") -> Table:
    table = Table("tokens a document", "documents", "", "of all tokens", box=None)
    most = max(bin.documents for bin in part.histogram)
    for bin in part.histogram:
        drawn = Bar(most, 0, bin.documents, width=_BAR_WIDTH)
        table.add_row(
            f"{bin.at_least:,} to {bin.at_most:,}", f"{bin.documents:,}", drawn, f"{bin.tokens / part.tokens:.1%}"
        )
    for column in (table.columns[0], table.columns[1], table.columns[3]):
        column.justify = "right"
    return table
