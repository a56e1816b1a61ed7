"""The tokenizer in a packed folder, compared with what the manifest says of it."""

from dataclasses import replace
from pathlib import Path

from deconattn.data.manifest import SETTINGS_NAME, Manifest
from deconattn.data.tokenizing.fingerprints import is_current
from deconattn.data.tokenizing.settings import read_settings
from deconattn.data.tokenizing.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from deconattn.errors import UserError
from deconattn.program import command


def open_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    """Load a packed folder's tokenizer, whether or not it is the one that packed it: see :func:`tokenizer_faults`.

    Raises :class:`UserError` if there is none, or it cannot be read.
    """
    return load_tokenizer(folder, manifest.eos_token_id, manifest.special_tokens)


def tokenizer_faults(folder: Path, tokenizer: Tokenizer, manifest: Manifest) -> list[str]:
    """In what a folder's tokenizer differs from the one of its manifest; a line each, and none if it is that one."""
    path, known = folder / tokenizer.file_name, manifest.tokenizer_fingerprint
    faults = []
    if not tokenizer.is_known_as(known):
        faults.append(f"{path}: fingerprint {tokenizer.fingerprint}, {known} in the manifest")
    if tokenizer.vocab_size != manifest.vocab_size:
        faults.append(f"{path}: vocabulary {tokenizer.vocab_size}, {manifest.vocab_size} in the manifest")
    if not faults and (folder / SETTINGS_NAME).is_file():  # earlier versions wrote none
        settings = read_settings(folder)
        text = settings.special_tokens == "text"
        if settings.separator != tokenizer.separator or text != (tokenizer.special_tokens == "text"):
            faults.append(f"{folder / SETTINGS_NAME}: other settings than the manifest's")
    return faults


def load_corpus_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    """Load the tokenizer that packed a folder.

    Raises :class:`UserError` if there is none, it cannot be read, or it is another.
    """
    tokenizer = open_tokenizer(folder, manifest)
    faults = tokenizer_faults(folder, tokenizer, manifest)
    if faults:
        raise UserError(
            f"{faults[0]}: not the tokenizer that packed the corpus; copy it again from where the corpus came from, "
            f"or pack again with {command('pack')}"
        )
    return tokenizer


def has_old_fingerprint(folder: Path, manifest: Manifest) -> bool:
    """Whether the fingerprint is of an earlier version, which some tokenizers that differ share."""
    is_json = (folder / HuggingFaceTokenizer.file_name).is_file()
    return is_json and not is_current(manifest.tokenizer_fingerprint)


def note_of(folder: Path, manifest: Manifest) -> str | None:
    """A line about a fingerprint that the tokenizer has, and others might."""
    if not has_old_fingerprint(folder, manifest):
        return None
    return (
        f"{folder}: an earlier version packed it, whose fingerprint some tokenizers that differ share; its tokenizer "
        f"has it ({command('shards')} split {folder} OUT gives a corpus a new one)"
    )


def renewed(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with the present kind of fingerprint.

    Raises :class:`UserError` if the folder's tokenizer is not the one that the manifest knows.
    """
    if not has_old_fingerprint(folder, manifest):
        return manifest
    tokenizer = load_corpus_tokenizer(folder, manifest)
    return replace(manifest, tokenizer_fingerprint=tokenizer.fingerprint, special_tokens=tokenizer.special_tokens)


def difference(folder: Path, manifest: Manifest, other_folder: Path, other: Manifest) -> str | None:
    """In what two corpora were tokenized differently, for a message; None where they were not.

    Raises :class:`UserError` where only the tokenizers themselves could tell and they are not those of the manifests.
    """
    if has_old_fingerprint(folder, manifest) != has_old_fingerprint(other_folder, other):
        manifest, other = renewed(folder, manifest), renewed(other_folder, other)
    # Conversations may be blended with texts: their type is wider, for the marks.
    alike = ("dtype",) if manifest.answers == other.answers else ()
    for field in ("tokenizer_fingerprint", "vocab_size", "eos_token_id", "bos_token_id", *alike):
        ours, theirs = getattr(manifest, field), getattr(other, field)
        if ours != theirs:
            return f"{field} {ours} and {theirs}"
    return None
