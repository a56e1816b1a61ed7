"""A SentencePiece model as a `tokenizer.json`: the same ids, without SentencePiece installed.

The converters of transformers give control pieces and bytes the score zero, so that a literal `<s>` or
`<0x0A>` in a text becomes that piece; SentencePiece spells it out. Here they can never win.

SentencePiece adds up scores in fp32, tokenizers in fp64: in a text of many thousand tokens one cut in a near
tie may fall otherwise.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from deconattn.errors import UserError

_UNIGRAM, _BPE = 1, 2
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_NEVER = -1e4
"""Score of pieces that no text may give. Characters without a piece then score a little less still, which is harmless
(no longer piece has them either, so no cut avoids them) except within such a piece: see :func:`_guard`."""
_ALWAYS = 1e3
"""Score of pieces that the user defined: SentencePiece takes them wherever they stand."""
_SPACE = "\u2581"


def convert(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`.

    Raises:
        UserError: its algorithm has no counterpart in a tokenizer.json.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
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
    """A pattern that cuts a literal `<s>` beside a character that has no piece, where `<s>` itself would score better.

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
