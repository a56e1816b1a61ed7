"""What a user, and the files beside a tokenizer, say of its separator and of special tokens spelled in a text."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deconattn.data.manifest import SETTINGS_NAME, SpecialTokens
from deconattn.errors import UserError

_SEPARATORS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001  (DeepSeek spells it with full-width bars)
    "<|endofdocument|>",
    "<|im_end|>",
    "[EOS]",
    "[SEP]",
)
_EOS_NAMED_IN = (
    ("generation_config.json", "eos_token_id"),
    (SETTINGS_NAME, "eos_token"),
    ("special_tokens_map.json", "eos_token"),
    ("config.json", "eos_token_id"),
)
_SHOWN = 8


@dataclass(frozen=True)
class Settings:
    """What is said of a tokenizer.

    Attributes:
        separator: spelling or id of the token that ends a document; None leaves the choice to the tokenizer.
        named_by: who says so, for a message.
        special_tokens: whether a special token that a text spells is read as "text" or as that "token"; None is the
            library's own way.
        special: spellings of tokens that are special whatever the tokenizer's own file says.
    """

    separator: str | int | None = None
    named_by: str = ""
    special_tokens: SpecialTokens | None = None
    special: frozenset[str] = field(default=frozenset())


def read_settings(folder: Path, eos: str | int | None = None, special_tokens: SpecialTokens | None = None) -> Settings:
    """Read the files in a tokenizer's folder; what the user gives goes before them.

    Args:
        folder: the files' folder.
        eos: spelling (`--eos`) or id (a manifest's) of the separator.
        special_tokens: `--special-tokens`.

    Raises:
        UserError: a file that is no JSON object, or names something that is no token.
    """
    config = _read(folder / SETTINGS_NAME)
    if special_tokens is None and isinstance(config.get("split_special_tokens"), bool):
        special_tokens = "text" if config["split_special_tokens"] else None
    decoder = config.get("added_tokens_decoder")
    added = decoder.values() if isinstance(decoder, dict) else ()
    special = frozenset(
        str(token.get("content")) for token in added if isinstance(token, dict) and token.get("special") is True
    )
    if eos is None:
        eos, named_by = _named_separator(folder)
    else:
        named_by = "--eos" if isinstance(eos, str) else "the manifest"
    return Settings(eos, named_by, special_tokens, special)


def choose_separator(
    settings: Settings, ids: Mapping[str, int], special: Collection[str], own: int, origin: str
) -> tuple[int, str]:
    """Return the id of the separator, and who chose it.

    Args:
        settings: what is said.
        ids: the vocabulary, added tokens included.
        special: spellings of the special tokens.
        own: id that the tokenizer's own file calls its end of text, or -1.
        origin: the tokenizer's name in messages.

    Raises:
        UserError: nobody names one, or it is not in the vocabulary.
    """
    wanted = settings.separator
    if wanted is None:
        if own >= 0:
            return own, "the tokenizer"
        known = next((token for token in _SEPARATORS if token in special and token in ids), None)
        if known is None:
            raise UserError(
                f"{origin} has no document separator: no file beside it names one, and {', '.join(_SEPARATORS[:5])} "
                f"and the like are not among its special tokens ({shown(special)}); give --eos TOKEN, or name it as "
                f"eos_token in {SETTINGS_NAME} beside it"
            )
        return ids[known], "the list of usual ones"
    remedy = (
        f"give one of its special tokens ({shown(special)})"
        if settings.named_by == "--eos"
        else "mend that file, or give --eos TOKEN"
    )
    if isinstance(wanted, str):
        if wanted not in ids:
            raise UserError(f"{settings.named_by}: {origin} has no token {wanted!r} to end documents with; {remedy}")
        return ids[wanted], settings.named_by
    if wanted not in ids.values():
        raise UserError(
            f"{settings.named_by}: {origin} has no token of the id {wanted} to end documents with; {remedy}"
        )
    return wanted, settings.named_by


def shown(tokens: Collection[str]) -> str:
    """The first of some tokens, for a message."""
    some = sorted(tokens)
    return (", ".join(some[:_SHOWN]) + (", ..." if len(some) > _SHOWN else "")) or "it has none"


def write_settings(folder: Path, separator: str, special_tokens: SpecialTokens, bos: str | None = None) -> None:
    """Write `tokenizer_config.json`, by which :func:`read_settings` and :func:`read_bos` find the same again.

    Args:
        bos: spelling of the token that documents begin with; None for nothing.
    """
    content = {"eos_token": separator, "split_special_tokens": special_tokens == "text"}
    if bos is not None:
        content["bos_token"] = bos
    (folder / SETTINGS_NAME).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def read_bos(folder: Path) -> str | None:
    """Return the token that a tokenizer's folder says texts begin with; None: it names none.

    Raises:
        UserError: a file that is no JSON object.
    """
    named = _read(folder / SETTINGS_NAME).get("bos_token")
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def _named_separator(folder: Path) -> tuple[str | int | None, str]:
    for name, key in _EOS_NAMED_IN:
        path = folder / name
        content = _read(path)
        value = content.get(key)
        if value is None and isinstance(content.get("text_config"), dict):  # of a model that also sees or hears
            value = content["text_config"].get(key)
        named_by = str(path)
        if isinstance(value, list) and key.endswith("_id"):
            named_by += f" (the first of {len(value)})" if len(value) > 1 else ""
            value = value[0] if value else None
        if isinstance(value, dict):
            value = value.get("content", value)
        if value is None:
            continue
        if type(value) is not (int if key.endswith("_id") else str):
            raise UserError(f"{path}: its {key} is {value!r}, which is no token; mend that file, or give --eos TOKEN")
        return value, named_by
    return None, ""


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check its permissions") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object, and may say how the tokenizer is used; mend it or move it away")
    return content
