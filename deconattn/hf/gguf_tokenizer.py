"""Byte-level BPE in llama.cpp's terms: tokens, types, merges, and the name of its pre-tokenizer.

llama.cpp has these ways built in and knows them by name alone. The name is therefore chosen by what a tokenizer.json
does, and a tokenizer that none of them equals is refused: the model would be fed other tokens than it was trained on.
"""

import json
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.errors import UserError

_NUMBER = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", _NUMBER)
_NAMES = {
    # "gpt-2" cuts the same words, but llama_detokenize would drop the space before a full stop.
    ((_GPT2,), False): "trillion",
    ((_NUMBER, _GPT2), False): "smollm",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_LLAMA3,), True): "llama-bpe",
    ((_QWEN2,), False): "qwen2",
}
"""Name of the pre-tokenizer by its patterns in order, and whether a word that is a token skips merging.

Compared over all of Unicode, they cut as the patterns do but for letters and digits that came with Unicode 16, and for
the long s: where case is ignored it is an s to the pattern, in "'\u017f" before a letter, and not to llama.cpp.
"""

_NEVER_IN_UTF8 = "".join(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))
"""Bytes that UTF-8 never has, as a byte-level alphabet spells them: like the characters of Latin-1."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokenizer fields of a GGUF file.

    Attributes:
        pre: llama.cpp's name of the way in which text is cut into words.
        tokens: the spelling of every row of the embedding, all different.
        kinds: names of `gguf.TokenType`, one a token.
        merges: `left right`, the earliest first.
        notes: what llama.cpp does otherwise, a line each.
    """

    pre: str
    tokens: list[str]
    kinds: list[str]
    merges: list[str]
    eos_token_id: int
    notes: tuple[str, ...]


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read the tokenizer in `folder`, padded to the `vocab_size` rows of the embedding.

    Raises:
        UserError: llama.cpp would give other ids than the tokenizer.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer.file_name != "tokenizer.json":
        raise UserError(
            f"--gguf: {folder} is a SentencePiece tokenizer, and only byte-level BPEs (as train:byte-bpe:VOCAB makes) "
            "are written to GGUF: leave out --gguf"
        )
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"--gguf: {folder} has {tokenizer.vocab_size:,} tokens but the model {vocab_size:,} rows: leave out --gguf"
        )
    document = json.loads(tokenizer.content)
    try:
        pre = _pre_tokenizer(document)
        _check_model(document["model"])
        _check_added_tokens(document["added_tokens"], tokenizer.eos_token_id)
        notes = _notes(document)
    except _NoCounterpart as reason:
        raise UserError(
            f"--gguf: {folder}: llama.cpp would read other tokens, since it knows no {reason}: leave out --gguf"
        ) from None
    spelling: dict[int, str] = {index: token for token, index in document["model"]["vocab"].items()}
    kind = dict.fromkeys(spelling, "NORMAL")
    for token in document["added_tokens"]:
        spelling[token["id"]] = token["content"]
        ends = token["id"] == tokenizer.eos_token_id
        kind[token["id"]] = "CONTROL" if token["special"] or ends else "USER_DEFINED"
    taken = set(spelling.values())
    for index in range(vocab_size):
        if index not in spelling:
            spelling[index], kind[index] = _unused(index, taken), "UNUSED"
    return Vocabulary(
        pre=pre,
        tokens=[spelling[index] for index in range(vocab_size)],
        kinds=[kind[index] for index in range(vocab_size)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]],
        eos_token_id=tokenizer.eos_token_id,
        notes=notes,
    )


class _NoCounterpart(Exception):
    """Feature of a tokenizer that llama.cpp lacks, by name."""


def _pre_tokenizer(document: dict[str, Any]) -> str:
    patterns: list[str] = []
    steps = _steps(document["pre_tokenizer"], "pretokenizers")
    for number, step in enumerate(steps, start=1):
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(_NUMBER)
            case {"type": "ByteLevel", "add_prefix_space": False} if number == len(steps):
                patterns += [_GPT2] if step.get("use_regex", True) else []
            case _:
                raise _NoCounterpart(f"pre-tokenizer like {json.dumps(step)} at this place")
    ignore_merges = bool(document["model"].get("ignore_merges"))
    if not steps or steps[-1]["type"] != "ByteLevel" or (tuple(patterns), ignore_merges) not in _NAMES:
        merging = " and ignore_merges" if ignore_merges else ""
        raise _NoCounterpart(f"pre-tokenizer that is {json.dumps(document['pre_tokenizer'])}{merging}")
    return _NAMES[tuple(patterns), ignore_merges]


def _check_model(model: dict[str, Any]) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    if model.get("type", "BPE") != "BPE":
        raise _NoCounterpart(f"{model['type']} model for whole words")
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _NoCounterpart(f"{option} of a BPE")
    if missing := set(ByteLevel.alphabet()) - set(_NEVER_IN_UTF8) - set(model["vocab"]):
        raise _NoCounterpart(f"BPE without tokens for all bytes ({len(missing)} are missing)")


def _check_added_tokens(added: list[dict[str, Any]], eos_token_id: int) -> None:
    if eos_token_id not in {token["id"] for token in added}:
        raise _NoCounterpart("separator that is not among the added tokens")
    for token in added:
        for option in ("lstrip", "rstrip", "single_word"):
            if token[option]:
                raise _NoCounterpart(f"added token with {option} ({token['content']!r})")
    for first, second in permutations(added, 2):
        if _taken_otherwise(first, second):
            raise _NoCounterpart(f"rule of which comes first, {first['content']!r} or {second['content']!r}")


def _taken_otherwise(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether, where `left` begins before `right` and runs into it, llama.cpp may take the other one of them.

    A tokenizer.json takes those that are not normalised, then the others, each time from left to right and the longest
    of those that begin together; llama.cpp takes the longest in the whole text, then the second longest.
    """
    a, b = left["content"], right["content"]
    together = left["normalized"] == right["normalized"]
    if len(set(a + b)) == 1:  # of a run of spaces both take the longest piece from the left, again and again
        return not together
    if b in a:
        return bool(left["normalized"]) and not right["normalized"]
    if not any(a[-length:] == b[:length] for length in range(1, min(len(a), len(b)))):
        return False
    left_is_first = together or not left["normalized"]
    lengths = len(a.encode()), len(b.encode())
    return lengths[0] <= lengths[1] if left_is_first else lengths[1] <= lengths[0]


def _unused(index: int, taken: set[str]) -> str:
    name = f"[PAD{index}]"
    while name in taken:
        name = f"[{name}]"
    return name


def _notes(document: dict[str, Any]) -> tuple[str, ...]:
    steps = [step["type"] for step in _steps(document["normalizer"], "normalizers")]
    if not steps:
        return ()
    if set(steps) != {"NFC"}:
        raise _NoCounterpart(f"normalizer like {'+'.join(steps)}")
    return ("this tokenizer brings text to Unicode's NFC and llama.cpp does not: give it text in NFC for equal tokens",)


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Flatten a sequence of sequences to its steps, in order."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[key] for step in _steps(inner, key)]
