"""Pack documents into a folder of shards; the body of the command `pack`."""

import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from deconattn import durable
from deconattn.data.manifest import write_manifest
from deconattn.data.packing.config import PackConfig
from deconattn.data.packing.journal import Journal, open_journal
from deconattn.data.packing.output import check_output
from deconattn.data.packing.pipeline import Packing, open_source
from deconattn.data.packing.plan import check_plan, make_plan
from deconattn.data.packing.report import PackSummary, write_report
from deconattn.data.reading.inputs import STDIN, Input, find_inputs
from deconattn.data.reading.texts import sample_texts
from deconattn.data.shards import ShardSchema
from deconattn.data.tokenizing.tokenizer import Tokenizer
from deconattn.data.tokenizing.training import parse_training, train_tokenizer

_SOURCE_NAMES = 8


def pack(config: PackConfig) -> PackSummary:
    """Pack the inputs into `config.out`; byte for byte the same for any number of workers, however often interrupted.

    Raises :class:`UserError` for whatever the user can mend. `config.out` is then as it was before, and what had been
    packed is kept beside it for the same call.
    """
    inputs = find_inputs(config.inputs)
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
                name = config.tokenizer if training is not None else f"the tokenizer {tokenizer.fingerprint[:12]}"
                plan = make_plan({"--tokenizer": name, **config.that_matter()}, inputs)
                if old is not None:
                    check_plan(old, plan, journal.folder)
                    journal.tidy()
                else:
                    tokenizer.save(journal.result)
                    journal.begin(plan)
                continued = len(journal.entries)
                schema = _schema(tokenizer, inputs)
                packing = Packing(config, inputs, journal, source, schema)
                shards = packing.run()
            manifest = schema.manifest(shards)
            summary = PackSummary(config.out, manifest, packing.counts.text_bytes, packing.counts.tally, continued)
            write_report(journal.result, summary)
            write_manifest(journal.result, manifest)
            durable.sync_tree(journal.result)
            check_output(out, config.overwrite)  # it may have filled meanwhile
            durable.put_in_place(journal.result, out)
    return summary


def pack_demo(out: Path) -> PackSummary:
    """Pack the bundled demo corpus (tiny Shakespeare, 1.1 MB) with a tokenizer of 2048 entries trained on it."""
    with as_file(files("deconattn.data") / "demo" / "shakespeare.jsonl") as demo:
        return pack(PackConfig(inputs=(str(demo),), tokenizer="train:2048", out=out, workers=1, val_fraction=0.05))


def _schema(tokenizer: Tokenizer, inputs: list[Input]) -> ShardSchema:
    names = [Path(source.name).name for source in inputs[:_SOURCE_NAMES]]
    if len(inputs) > _SOURCE_NAMES:
        names.append(f"and {len(inputs) - _SOURCE_NAMES} more")
    return ShardSchema(tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_token_id, ", ".join(names))


def _unfinished(journal: Journal, repeatable: bool) -> dict[str, Any] | None:
    """The plan of the unfinished pack to go on with, if there is one."""
    old = journal.load()
    if old is not None and not repeatable:
        print("note: standard input cannot be read again; the pack begins anew", file=sys.stderr)
        return None
    return old
