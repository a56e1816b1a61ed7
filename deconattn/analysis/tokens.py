"""The sample's text, as each model's tokens."""

from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from deconattn.analysis.sample import SHORTEST, Sample
from deconattn.checkpoint.stored_model import StoredModel
from deconattn.data import SampleStream, TokenCorpus, Tokenizer, read_manifest
from deconattn.data.corpus_tokenizer import load_corpus_tokenizer
from deconattn.data.reading.texts import read_texts
from deconattn.errors import UserError

LONGEST = 2048
"""Tokens of a sequence where no length is asked for and every model takes more: the paper's."""


def read_sample(sample: Sample, models: Sequence[StoredModel]) -> list[Tensor]:
    """Each model's token ids, int64 [sequences, seq_len]; the same ones where tokenizers agree.

    Raises:
        UserError: a length that a model cannot take, too little text, or a corpus of another tokenizer.
    """
    sample.check()
    length = sequence_length(sample, models)
    if sample.data is not None:
        ids, tokenizer = _packed(sample.data, sample.sequences, length)
        for stored in models:
            _check_tokenizer(sample.data, tokenizer, ids, stored)
        return [ids] * len(models)
    return [_encoded(sample, length, stored) for stored in models]


def sequence_length(sample: Sample, models: Sequence[StoredModel]) -> int:
    """Return the tokens of a sequence: those asked for, or as many as all models take, :data:`LONGEST` at most.

    Raises:
        UserError: a model's fixed stream is shorter.
    """
    if sample.seq_len is None:
        shortest = min(models, key=_positions)
        length = _positions(shortest)
        if length < SHORTEST:
            raise UserError(f"{shortest.path} takes {length} tokens, fewer than {SHORTEST}: give another model")
        return min(LONGEST, length)
    for stored in models:
        if stored.longest is not None and sample.seq_len > stored.longest:
            raise UserError(
                f"--seq-len {sample.seq_len} is beyond the fixed stream of {stored.path}, {stored.longest} "
                "tokens: give less"
            )
    return sample.seq_len


def _positions(stored: StoredModel) -> int:
    """Return the longest sequence that a model says it is made for; some of other families say nothing."""
    return getattr(stored.config, "max_position_embeddings", None) or LONGEST


def _packed(folder: Path, sequences: int, length: int) -> tuple[Tensor, Tokenizer]:
    """Samples of the corpus, of the first split that has enough, and its tokenizer."""
    manifest, found = read_manifest(folder), 0
    for split in ("val", "train"):
        if not manifest.of_split(split):
            continue
        corpus = TokenCorpus(folder, split)
        found = (corpus.num_tokens - 1) // length
        if found >= sequences:
            batch = SampleStream([(corpus, 1.0)], length, seed=0).batch(range(sequences), doc_mask=False)
            return batch.input_ids, load_corpus_tokenizer(folder, manifest)
    raise UserError(
        f"--data {folder} has {found} sequences of {length} tokens: lower --sequences {sequences} or --seq-len"
    )


def _check_tokenizer(folder: Path, theirs: Tokenizer, ids: Tensor, stored: StoredModel) -> None:
    """The model's tokenizer must read the sample's own text as the corpus's does."""
    text = theirs.decode(ids[0].numpy())
    ours = stored.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if ours != theirs.encode_batch([text])[0].tolist() or int(ids.max()) >= stored.config.vocab_size:
        raise UserError(
            f"--data {folder} was packed with another tokenizer than that of {stored.path}: pack the text with its "
            "own, or give the text itself with --text"
        )


def _encoded(sample: Sample, length: int, stored: StoredModel) -> Tensor:
    """The first tokens of all documents end to end, each followed by the tokenizer's end of text."""
    tokenizer, wanted = stored.tokenizer, sample.sequences * length
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for text in _documents(sample.text):
        ids += tokenizer(text, add_special_tokens=False, verbose=False).input_ids + end
        if len(ids) >= wanted:
            return torch.tensor(ids[:wanted]).view(sample.sequences, length)
    raise UserError(
        f"{sample.source} has {len(ids)} tokens in the tokenizer of {stored.path}, fewer than {sample.sequences} "
        f"sequences of {length}: give more text, or lower --sequences or --seq-len"
    )


def _documents(text: Sequence[str]) -> Iterator[str]:
    if text:
        yield from read_texts(text)
        return
    with as_file(files("deconattn.data") / "demo" / "shakespeare.jsonl") as demo:
        yield from read_texts([str(demo)])
