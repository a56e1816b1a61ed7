"""A small tokenizer of every kind that the libraries know, built from a few texts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from deconattn.data.tokenizing.training import Training, train_tokenizer

Texts = Sequence[str]
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def llama2(texts: Texts) -> Tokenizer:
    """A space before each part between special tokens, bytes where there is no piece, `<s>` first by the library."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([word for text in texts for word in text.split()], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama2_first(texts: Texts) -> Tokenizer:
    """The same with the space before the whole text only."""
    tokenizer = llama2(texts)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def gemma(texts: Texts) -> Tokenizer:
    """`<eos>` is special; `</s>`, as it comes from HTML, and a run of line ends are not."""
    tokenizer = _byte_level(texts, ["<pad>", "<eos>", "<bos>", "<unk>"])
    html = [AddedToken(token, special=False, normalized=False) for token in ("</s>", "<s>", "\n\n")]
    tokenizer.add_tokens(html)
    return tokenizer


def neox(texts: Texts) -> Tokenizer:
    """Normal form C, and runs of spaces as tokens that are not special."""
    tokenizer = _byte_level(texts, ["<|endoftext|>", "<|padding|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * count, special=False, normalized=True) for count in (8, 4, 2)])
    return tokenizer


def llama3(texts: Texts) -> Tokenizer:
    """Words by a pattern; a token that takes the spaces about it, and one that the library puts first."""
    tokenizer = _byte_level(texts, ["<|begin_of_text|>", "<|end_of_text|>"])
    words = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return tokenizer


def unigram(texts: Texts) -> Tokenizer:
    """T5's kind, without bytes: what it does not know is lost."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_piece(texts: Texts) -> Tokenizer:
    """BERT's kind: lower case, words cut at marks, `[CLS]` and `[SEP]` put about a text by the library."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def word_level(texts: Texts) -> Tokenizer:
    """Whole words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=500, special_tokens=["[UNK]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


KINDS: dict[str, Callable[[Texts], Tokenizer]] = {
    function.__name__: function
    for function in (llama2, llama2_first, gemma, neox, llama3, unigram, word_piece, word_level)
}
SENTENCEPIECE = {"sentencepiece_unigram": "unigram", "sentencepiece_bpe": "bpe"}


def build(kind: str, texts: Texts, folder: Path) -> Path:
    """Write a kind's tokenizer into a folder; the folder."""
    if kind in SENTENCEPIECE:
        train_tokenizer(texts, Training(SENTENCEPIECE[kind], 600), folder)
    else:
        KINDS[kind](texts).save(str(folder / "tokenizer.json"))
    return folder


def write_json(folder: Path, **files: Any) -> None:
    """Write files NAME.json beside a tokenizer."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def _byte_level(texts: Texts, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
