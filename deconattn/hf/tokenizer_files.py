"""The tokenizer as an export carries it: AutoTokenizer gives the ids that the model was trained on."""

import json
from pathlib import Path
from typing import Any

from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.errors import UserError
from deconattn.hf import sentencepiece_json

_WITH_A_TOKENIZER_OF_ITS_OWN = "qwen2"
"""The model type for which AutoTokenizer passes over what tokenizer_config.json says, unless an auto_map is there.

The file that the auto_map names is read with `trust_remote_code=True` only; without, the tokenizer.json is taken as it
is, which the file says, too. A tokenizer that was loaded without and is saved again keeps the auto_map but not the
file, so that its copy loads without `trust_remote_code` and says with it which file it misses; leaving the auto_map out
would make it split texts Qwen's way without a word. No other key of the two files leads past Qwen's class.
"""
_MODULE = "tokenization_deconattn"
_CLASS = "DeconAttnTokenizer"
_SOURCE = f'''"""The tokenizer.json beside this file, exactly as it is."""

from transformers import PreTrainedTokenizerFast


class {_CLASS}(PreTrainedTokenizerFast):
    """Here because AutoTokenizer would give a Qwen model Qwen's own way of splitting text, whatever the file says."""
'''
_SAMPLES = [
    "The quick brown fox jumps over the lazy dog. It's 12,345.67 km (or 1e-5?) -- isn't it?",
    "  leading,  double and trailing spaces \t tabs\n\n\nlines\r\n  indented\u00a0no-break  ",
    "Žluťoučký kůň, ЩИТ, 東京都の天気、한국어, العربية, हिन्दी, ελληνικά, e\u0301 \u00e9 \u2581 \ufb01 \u2460",
    "🤗👩\u200d👩\u200d👧 \U0001d4b3 \u0000\u0001\u007f\u200b\ufeff\ufffd \U0010ffff",
    "literals <s> </s> <unk> <0x0A> [SEP] <|endoftext|> <|im_end|> &amp; <b>bold</b>",
    "def f(x: int) -> str:\n    return f'{x:>10}' if x != 0 else \"\"  # comment\n",
    "",
    " ",
]


def write_tokenizer(source: Path, out: Path, model_type: str, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `out` from a folder with tokenizer.json or .model.

    A `tokenizer.json` is copied as it is, less what would add tokens, pad or cut. The eos token pads too: a
    mask tells the two apart.

    Raises:
        UserError: a SentencePiece model that no tokenizer.json can stand for.
    """
    tokenizer = load_tokenizer(source)
    from_sentencepiece = tokenizer.file_name == "tokenizer.model"
    if from_sentencepiece:
        fast = sentencepiece_json.convert(source / tokenizer.file_name if source.is_dir() else source)
        content = fast.to_str(pretty=True)
        eos = fast.id_to_token(tokenizer.eos_token_id)
    else:
        tokenizer.save(out)
        content = _adding_nothing((out / tokenizer.file_name).read_text(encoding="utf-8"))
        eos = _token(json.loads(content), tokenizer.eos_token_id)
    (out / "tokenizer.json").write_text(content, encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "pad_token": eos,
        "model_max_length": max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # SentencePiece never reads a control piece from a text; a tokenizer.json does.
        "split_special_tokens": from_sentencepiece,
    }
    if model_type == _WITH_A_TOKENIZER_OF_ITS_OWN:
        config["auto_map"] = {"AutoTokenizer": [None, f"{_MODULE}.{_CLASS}"]}
        (out / f"{_MODULE}.py").write_text(_SOURCE, encoding="utf-8")
    (out / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def check_tokenizer(source: Path, out: Path) -> None:
    """Load `out` as its users will and compare the ids of some difficult texts.

    Raises:
        UserError: naming the first text whose ids differ.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(out, model_max_length=2**30)  # without, a warning for the longer texts
    tokenizer = load_tokenizer(source)
    for text, expected, ids in zip(_SAMPLES, tokenizer.encode_batch(_SAMPLES), loaded(_SAMPLES).input_ids, strict=True):
        if expected.tolist() != ids:
            raise UserError(
                f"{source}: transformers would not give the ids that the model was trained on, for example for "
                f"{text!r}: export with --no-tokenizer and encode with the original"
            )
    if loaded.eos_token_id != tokenizer.eos_token_id:
        raise UserError(f"{source}: its eos token loads as {loaded.eos_token_id} instead of {tokenizer.eos_token_id}")


def _adding_nothing(content: str) -> str:
    """Ids as in training: a post-processor may add tokens, and a file may cut or pad."""
    import tokenizers

    document = json.loads(content)
    adds = tokenizers.Tokenizer.from_str(content).num_special_tokens_to_add(is_pair=False) > 0
    changes = {key: None for key in ("truncation", "padding") if document.get(key) is not None}
    if adds:
        changes["post_processor"] = None
    if not changes:
        return content
    return json.dumps(document | changes, indent=2, ensure_ascii=False)


def _token(document: dict[str, Any], token_id: int) -> str:
    for token in document.get("added_tokens", ()):
        if token["id"] == token_id:
            return str(token["content"])
    vocabulary: dict[str, int] = document["model"]["vocab"]
    return next(token for token, index in vocabulary.items() if index == token_id)
