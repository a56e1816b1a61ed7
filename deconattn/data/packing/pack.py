"""Pack documents into a folder of shards; the body of the command `pack`, and what it reports."""

import sys
from collections import Counter
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from deconattn import durable
from deconattn.data.manifest import (
    MANIFEST_NAME,
    SETTINGS_NAME,
    SPLITS,
    TABLES_NAME,
    TOKENIZER_NAMES,
    Manifest,
    read_manifest,
    write_manifest,
)
from deconattn.data.packing.journal import Journal, check_plan, make_plan, open_journal
from deconattn.data.packing.pack_config import PackConfig
from deconattn.data.packing.packer import Packer, open_source
from deconattn.data.packing.selection import validation_note
from deconattn.data.reading.input_files import STDIN, Input, counted_kinds, find_inputs
from deconattn.data.reading.texts import Tally, sample_texts
from deconattn.data.shards import ShardSchema
from deconattn.data.tokenizing.tokenizer import Tokenizer, find_bos
from deconattn.data.tokenizing.training import parse_training, train_tokenizer
from deconattn.errors import UserError

_SOURCE_NAMES = 8
REPORT_NAME = "report.json"
"""File with counts of what was taken and skipped, beside the manifest."""


@dataclass(frozen=True)
class PackSummary:
    """Result of a pack.

    Attributes:
        out: the packed folder.
        manifest: what is in it.
        text_bytes: the documents' UTF-8; tokens include a separator a document.
        val_fraction: what the validation split was to have of the tokens.
        tally: what was skipped.
        left_out: files of folders that were not taken, by ending.
        continued: shards, or sorted runs of a shuffle, that an interrupted pack had finished before this one.
        tokenizer: lines about the separator and how special tokens were read.
    """

    out: Path
    manifest: Manifest
    text_bytes: int
    val_fraction: float
    tally: Tally
    left_out: Counter[str]
    continued: int
    tokenizer: tuple[str, ...] = ()

    @property
    def documents(self) -> int:
        """Documents over all splits (a document that was cut for validation counts as two)."""
        return sum(shard.documents for shard in self.manifest.shards)

    @property
    def tokens(self) -> int:
        """Tokens over all splits, separators included."""
        return sum(shard.tokens for shard in self.manifest.shards)

    def __str__(self) -> str:
        lines = [f"packed {self.out}: {self.documents:,} documents, {self.tokens:,} tokens"]
        lines[0] += f", {self.text_bytes / max(self.tokens, 1):.2f} bytes per token"
        for split in SPLITS:
            shards = self.manifest.of_split(split)
            documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
            lines.append(f"  {split}: {documents:,} documents, {tokens:,} tokens, {len(shards)} shards")
        if note := validation_note(self.manifest, self.val_fraction):
            lines.append(f"  note: {note}")
        if self.left_out:
            lines.append(f"  left out {self.left_out.total():,} files of the folders: {counted_kinds(self.left_out)}")
        tally = self.tally
        for count, kind in ((tally.empty, "empty"), (tally.short, "short"), (tally.duplicates, "duplicate")):
            if count:
                lines.append(f"  skipped {count:,} {kind} documents")
        if tally.bad:
            reasons = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common())
            lines.append(f"  skipped {tally.bad:,} bad lines: {reasons}")
            lines += [f"    {example}" for example in tally.examples]
        lines += [f"  {line}" for line in self.tokenizer]
        if self.continued:
            lines.append(f"  went on after {self.continued:,} steps of an interrupted pack")
        return "\n".join(lines)


def pack(config: PackConfig) -> PackSummary:
    """Pack the inputs into `config.out`; byte for byte the same for any number of workers, however often interrupted.

    Raises :class:`UserError` for whatever the user can mend. `config.out` is then as it was before, and what had been
    packed is kept beside it for the same call.
    """
    left_out: Counter[str] = Counter()
    inputs = find_inputs(config.inputs, config.text_field, config.split, left_out)
    training = parse_training(config.tokenizer)
    out = config.out.resolve() if config.out.is_symlink() else config.out  # what a link points to is replaced
    repeatable = all(source.name != STDIN for source in inputs)
    with durable.disk_errors(config.out):
        check_output(out, config.overwrite)
        with open_journal(out, keep=repeatable) as journal:
            old = None if config.restart else _unfinished(journal, repeatable)
            if old is None:
                journal.clear()
                if training is not None:
                    train_tokenizer(sample_texts(inputs, config.text_field), training, journal.result)
            spec = str(journal.result) if training is not None else config.tokenizer
            with open_source(config, inputs, journal, spec) as source:
                tokenizer = source.tokenizer
                schema = _schema(tokenizer, inputs, config.bos, config.chat)
                plan = make_plan({**_told(config, tokenizer), **config.that_matter()}, inputs)
                if old is not None:
                    check_plan(old, plan, journal.folder)
                    journal.tidy()
                else:
                    tokenizer.save(journal.result)
                    journal.begin(plan)
                continued = len(journal.entries)
                packer = Packer(config, inputs, journal, source, schema)
                shards = packer.run()
            manifest = schema.manifest(shards)
            counts = packer.counts
            summary = PackSummary(
                out=config.out,
                manifest=manifest,
                text_bytes=counts.text_bytes,
                val_fraction=config.val_fraction,
                tally=counts.tally,
                left_out=left_out,
                continued=continued,
                tokenizer=how_read(tokenizer),
            )
            write_report(journal.result, summary)
            write_manifest(journal.result, manifest)
            durable.sync_tree(journal.result)
            check_output(out, config.overwrite)  # it may have filled meanwhile
            journal.put_in_place(out)
    return summary


def pack_demo(out: Path) -> PackSummary:
    """Pack the bundled demo corpus (tiny Shakespeare, 1.1 MB) with a tokenizer of 2048 entries trained on it."""
    with as_file(files("deconattn.data") / "demo" / "shakespeare.jsonl") as demo:
        return pack(PackConfig(inputs=(str(demo),), tokenizer="train:2048", out=out, workers=1, val_fraction=0.05))


def _told(config: PackConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer and its settings, by the flags that give them; of one that is trained, as they were given.

    Beside that one lies what a pack before told it, with flags that may have been others.
    """
    if parse_training(config.tokenizer) is not None:
        name, eos, special_tokens = config.tokenizer, config.eos, config.special_tokens
    else:
        name = f"the tokenizer {tokenizer.fingerprint[:15]}"
        eos, special_tokens = tokenizer.separator, tokenizer.special_tokens
    return {"--tokenizer": name, "--eos": eos, "--bos": config.bos, "--special-tokens": special_tokens}


def how_read(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Lines that say which separator a tokenizer has, and what becomes of special tokens spelled in a text."""
    separator = f"{tokenizer.separator!r} (id {tokenizer.eos_token_id})"
    lines = [f"separator {separator}, named by {tokenizer.named_by}"]
    if tokenizer.eos_token_id not in tokenizer.special().values():
        lines.append(f"note: {separator} is no special token: a text that holds it seems to end there")
    if tokenizer.special_tokens == "text":
        lines.append("special tokens spelled in a text are read as text")
    else:
        lines.append("special tokens spelled in a text are read as those tokens (--special-tokens text: as text)")
    return tuple(lines)


def _schema(tokenizer: Tokenizer, inputs: list[Input], bos: str | None, chat: bool) -> ShardSchema:
    names = [Path(source.name).name for source in inputs[:_SOURCE_NAMES]]
    if len(inputs) > _SOURCE_NAMES:
        names.append(f"and {len(inputs) - _SOURCE_NAMES} more")
    return ShardSchema(
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        tokenizer.eos_token_id,
        ", ".join(names),
        None if bos is None else find_bos(tokenizer, bos),
        tokenizer.special_tokens,
        answers=chat,
    )


def _unfinished(journal: Journal, repeatable: bool) -> dict[str, Any] | None:
    """The plan of the unfinished pack to go on with, if there is one."""
    old = journal.load()
    if old is not None and not repeatable:
        print("note: standard input cannot be read again; the pack begins anew", file=sys.stderr)
        return None
    return old


def write_report(folder: Path, summary: PackSummary) -> None:
    """Write `folder/report.json`: what is the same however often the pack was interrupted."""
    manifest, skipped = summary.manifest, summary.tally.as_dict()
    del skipped["max_bad"]
    report = {
        "documents": {split: sum(shard.documents for shard in manifest.of_split(split)) for split in SPLITS},
        "tokens": {split: sum(shard.tokens for shard in manifest.of_split(split)) for split in SPLITS},
        "text_bytes": summary.text_bytes,
        "skipped": skipped,
        "files_left_out": dict(sorted(summary.left_out.items())),
    }
    durable.write_json(folder / REPORT_NAME, report)


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that holds anything but, given `overwrite`, a packed corpus and nothing besides."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} exists and is not a folder; give another --out")
    if out.is_mount():  # nothing can be renamed over it, which would show only at the very end
        raise UserError(f"{out} is a mount point; give --out a folder below it")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).exists():
        raise UserError(f"{out} is not empty and not a packed corpus; give another --out or remove it yourself")
    if not overwrite:
        raise UserError(f"{out} already holds a packed corpus; give another --out, or --overwrite to replace it")
    shards = (shard.name for shard in read_manifest(out).shards)
    known = {MANIFEST_NAME, REPORT_NAME, SETTINGS_NAME, TABLES_NAME, *TOKENIZER_NAMES, *shards}
    strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if strangers:
        raise UserError(f"{out} holds {strangers[0]}, which no pack wrote; move it away before --overwrite")
