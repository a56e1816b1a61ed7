"""A SentencePiece model as a `tokenizer.json`: the same ids, without SentencePiece installed.

The converters of transformers give control pieces and bytes the score zero, so that a literal `<s>` or
`<0x0A>` in a text becomes that piece; SentencePiece spells it out. Here they can never win.

SentencePiece adds up scores in fp32, tokenizers in fp64: in a text of many thousand tokens one cut in a near
tie may fall otherwise.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from deconattn.errors import UserError

_UNIGRAM, _BPE = 1, 2
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_NEVER = -1e4
"""Score of pieces that no text may give. Unknown characters then score a little less, which is harmless: a character
is unknown if it has no piece, so every way to cut the text has it as a piece of its own."""
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
    tokenizer.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix)
    added = [piece for piece in proto.pieces if piece.type in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL) for piece in added])
    return tokenizer


def _unigram(proto: Any) -> models.Unigram:
    possible = (_NORMAL, _USER_DEFINED)
    vocabulary = [(piece.piece, piece.score if piece.type in possible else _NEVER) for piece in proto.pieces]
    return models.Unigram(vocabulary, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


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
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _decoder(dummy_prefix: bool) -> decoders.Decoder:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if dummy_prefix else steps)
