"""The tokenizer as an export carries it: AutoTokenizer gives the ids that the model was trained on."""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from deconattn.data.tokenizing.settings import read_bos
from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.errors import UserError

_WITH_A_TOKENIZER_OF_ITS_OWN = "qwen2"
"""Model type for which AutoTokenizer passes over what tokenizer_config.json says, unless an auto_map is there.

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
_UNIGRAM, _BPE = 1, 2
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_NEVER = -1e4
"""Score of pieces that no text may give. Characters without a piece then score a little less still, which is harmless
(no longer piece has them either, so no cut avoids them) except within such a piece: see :func:`_guard`."""
_ALWAYS = 1e3
"""Score of pieces that the user defined: SentencePiece takes them wherever they stand."""
_SPACE = "\u2581"


def write_tokenizer(source: Path, out: Path, model_type: str, max_length: int, bos_token_id: int | None = None) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `out` from a folder with tokenizer.json or .model.

    A `tokenizer.json` is copied as it is, less what would add tokens, pad or cut. The eos token pads too: a
    mask tells the two apart. A bos token is named, for chat templates and for scores of text without a context, and
    not added.

    Args:
        bos_token_id: which one, where the folder names none.

    Raises:
        UserError: a SentencePiece model that no tokenizer.json can stand for.
    """
    tokenizer = load_tokenizer(source)
    bos = read_bos(source if source.is_dir() else source.parent)
    if bos is None and bos_token_id is not None:
        bos = tokenizer.spelling(bos_token_id)
    is_sentencepiece = tokenizer.file_name == "tokenizer.model"
    if is_sentencepiece:
        fast = from_sentencepiece(source / tokenizer.file_name if source.is_dir() else source)
        content = fast.to_str(pretty=True)
        eos = fast.id_to_token(tokenizer.eos_token_id)
    else:
        tokenizer.save(out)
        content = _adding_nothing((out / tokenizer.file_name).read_text(encoding="utf-8"))
        eos = tokenizer.separator
    (out / "tokenizer.json").write_text(content, encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "pad_token": eos,
        "model_max_length": max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # SentencePiece never reads a control piece from a text; a tokenizer.json does unless packed as text.
        "split_special_tokens": tokenizer.special_tokens == "text",
    }
    if bos is not None:
        config["bos_token"] = bos
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
    """Return the tokenizer.json without what changes ids: a post-processor that adds tokens, truncation, padding."""
    document = json.loads(content)
    adds = Tokenizer.from_str(content).num_special_tokens_to_add(is_pair=False) > 0
    changes = {key: None for key in ("truncation", "padding") if document.get(key) is not None}
    if adds:
        changes["post_processor"] = None
    if not changes:
        return content
    return json.dumps(document | changes, indent=2, ensure_ascii=False)


def from_sentencepiece(path: Path) -> Tokenizer:
    """Convert a SentencePiece `tokenizer.model` to a `tokenizer.json` with the same ids.

    The converters of transformers give control pieces and bytes the score zero, so that a literal `<s>` or `<0x0A>` in
    a text becomes that piece; SentencePiece spells it out. Here they can never win. SentencePiece adds up scores in
    fp32, tokenizers in fp64: in a text of many thousand tokens one cut in a near tie may fall otherwise.

    Raises:
        UserError: its algorithm has no counterpart in a tokenizer.json.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    if not all(isinstance(piece.piece, str) for piece in proto.pieces):
        raise UserError(f"{path} has a piece that is no UTF-8 text: restore it")
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE) or proto.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(
            f"{path} is neither a unigram nor a BPE model with prefixed spaces: no tokenizer.json can hold it"
        )
    tokenizer = Tokenizer(_unigram(proto) if kind == _UNIGRAM else _bpe(proto))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    if kind == _UNIGRAM and (guard := _guard(proto)):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(guard), "merged_with_previous")
    tokenizer.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix)
    # As an added token a symbol would be cut out before normalisation; unigram models need no such thing.
    kinds = (_CONTROL,) if kind == _UNIGRAM else (_CONTROL, _USER_DEFINED)
    added = [piece for piece in proto.pieces if piece.type in kinds]
    tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL) for piece in added])
    return tokenizer


def _unigram(proto: Any) -> models.Unigram:
    imposed = {_USER_DEFINED: _ALWAYS}
    vocabulary = [
        (piece.piece, piece.score if piece.type == _NORMAL else imposed.get(piece.type, _NEVER))
        for piece in proto.pieces
    ]
    return models.Unigram(vocabulary, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _guard(proto: Any) -> str:
    """Return a pattern that cuts a literal `<s>` beside a character without a piece, where `<s>` would score better.

    No piece crosses such a cut, nor does a run of unknown characters, so it changes nothing else.
    """
    pieces = {piece.piece for piece in proto.pieces if piece.type in (_NORMAL, _USER_DEFINED)}
    tails: dict[tuple[str, str], list[str]] = {}
    for piece in proto.pieces:
        text = piece.piece
        known = [character in pieces for character in text]
        if piece.type not in (_NORMAL, _USER_DEFINED) and not all(known) and len(text) > 1:
            cut = next((index for index in range(len(text) - 1) if known[index] != known[index + 1]), 0)
            tails.setdefault((text[:cut], text[cut]), []).append(re.escape(text[cut + 1 :]))
    patterns = [
        (f"(?<={re.escape(before)})" if before else "") + f"{re.escape(character)}(?={'|'.join(after)})"
        for (before, character), after in tails.items()
    ]
    return "|".join(patterns)


def _bpe(proto: Any) -> models.BPE:
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    normal = {piece.piece for piece in proto.pieces if piece.type == _NORMAL}
    merges = []
    for piece in proto.pieces:
        if piece.type == _NORMAL:
            halves = ((piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece)))
            known = [pair for pair in halves if pair[0] in normal and pair[1] in normal]
            merges += [(-piece.score, ids[left], ids[right], left, right) for left, right in known]
    return models.BPE(
        ids,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _decoder(dummy_prefix: bool) -> decoders.Decoder:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if dummy_prefix else steps)
