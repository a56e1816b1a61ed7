"""Hashes by which packed corpora recognise a `tokenizer.json`."""

import hashlib
import json
from typing import Any

from deconattn.data.manifest import FINGERPRINT, SpecialTokens

_FALSE_BY_DEFAULT = ("fuse_unk", "byte_fallback", "ignore_merges")  # of a model


def fingerprint(document: dict[str, Any], special_tokens: SpecialTokens) -> str:
    """Hash a whole tokenizer.json, and how it reads special tokens.

    Left out is only what the library takes for the same: spacing and order of the keys, the older spelling of merges,
    and null, false and `use_regex` where an older version of the library did not write what it took for granted.
    """
    model = dict(document.get("model") or {})
    for name in _FALSE_BY_DEFAULT:
        if model.get(name) is False:
            del model[name]
    if model.get("dropout") == 0:
        del model["dropout"]
    large = _large_parts(model)
    kept = _without_defaults({**document, "model": model})
    kept["model"] |= large
    return FINGERPRINT + _hash([kept, special_tokens])


def is_current(known: str) -> bool:
    """Whether a fingerprint of a tokenizer.json is of this version, which nothing escapes."""
    return known.startswith(FINGERPRINT)


def first_fingerprint(document: dict[str, Any]) -> str:
    """The fingerprint of corpora packed before there was :func:`fingerprint`; some tokenizers that differ share it."""
    model = dict(document.get("model") or {})
    large = _large_parts(model)
    parts = [document.get("normalizer"), document.get("pre_tokenizer"), document.get("added_tokens"), model]
    kept = _first_without_defaults(parts)
    kept[-1] |= large
    return _hash(kept)


def _large_parts(model: dict[str, Any]) -> dict[str, Any]:
    """Take vocabulary and merges, of which nothing is left out, from a model."""
    if "merges" in model:  # the library writes a merge as "a b" or, since 0.20, as ["a", "b"]
        model["merges"] = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    return {name: model.pop(name) for name in ("vocab", "merges") if name in model}


def _without_defaults(part: Any) -> Any:
    if isinstance(part, list):
        return [_without_defaults(item) for item in part]
    if not isinstance(part, dict):
        return part
    byte_level = part.get("type") == "ByteLevel"
    return {
        key: _without_defaults(value)
        for key, value in part.items()
        if value is not None and not (byte_level and key == "use_regex" and value is True)
    }


def _first_without_defaults(part: Any) -> Any:
    if isinstance(part, list):
        return [_first_without_defaults(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: _first_without_defaults(value)
        for key, value in part.items()
        if value is not None and value is not False and (key, value) != ("use_regex", True) and key != "trim_offsets"
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
