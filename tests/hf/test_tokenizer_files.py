"""AutoTokenizer reads the export and gives the ids that the model was trained on."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.data.tokenizing.training import Training, train_tokenizer
from deconattn.errors import UserError
from deconattn.hf import tokenizer_files
from deconattn.layers.config import ModelConfig
from tests.hf.models import exported, small_config, trained

DEMO = Path(__file__).parents[2] / "deconattn" / "data" / "demo" / "shakespeare.jsonl"
TEXTS = [
    "To be, or not to be: that is the question 1234, 1999.",
    "  two  spaces,\ttabs \n\n lines \r\n",
    "Ünïcode 東京 🤗 ﬁ e\u0301 \u2581 \x00 \u200b",
    "<s>strike</s> <unk> <0x0A> <|endoftext|> </s>",
    "",
]
MODELS = {
    "deconattn": small_config("mlp", vocab_size=600),
    "qwen2": small_config("standard", vocab_size=600),
    "qwen3": small_config("standard", vocab_size=600, qk_norm=True, attention_bias=False),
}


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [json.loads(line)["text"] for line in DEMO.read_text(encoding="utf-8").splitlines()[:40]]


@pytest.fixture(scope="module")
def byte_pairs(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-NeoX's kind: byte-level, NFC, GPT-2's pattern; saved with truncation and a token in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>", "<bos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*documents, "1999 2000 1234 " * 50], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.enable_truncation(16)
    folder = tmp_path_factory.mktemp("byte_pairs")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def sentencepiece(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained("unigram", documents, tmp_path_factory)


@pytest.fixture(scope="module")
def sentencepiece_bpe(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained("bpe", documents, tmp_path_factory)


@pytest.fixture(scope="module")
def byte_bpe(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained("byte-bpe", documents, tmp_path_factory)


def _trained(kind: str, documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [*documents, "</b> <s> </s> <0x0A> " * 100]
    return train_tokenizer(texts, Training(kind, 500), tmp_path_factory.mktemp(kind)).parent


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("kind", ["byte_pairs", "byte_bpe", "sentencepiece", "sentencepiece_bpe"])
def test_ids_and_text_are_the_originals(
    kind: str, config: ModelConfig, documents: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(kind)
    original = load_tokenizer(source)
    out = exported(trained(config), tmp_path / "out", tokenizer_folder=source)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == original.eos_token_id
    for trust in (None, True):
        loaded = AutoTokenizer.from_pretrained(out, trust_remote_code=trust)
        texts = [*TEXTS, *(document[:400] for document in documents)]
        for text, ids in zip(texts, original.encode_batch(texts), strict=True):
            assert loaded(text).input_ids == ids.tolist(), text
            assert loaded.decode(ids.tolist()) == original.decode(ids)
        assert loaded.eos_token_id == loaded.pad_token_id == original.eos_token_id
        assert loaded.model_max_length == config.max_position_embeddings
    batch = loaded(["To be", "To be or not to be"], padding=True)
    assert [mask[0] for mask in batch.attention_mask] == [0, 1]


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("kind", ["byte_pairs", "sentencepiece"])
def test_what_texts_begin_with_is_named_and_not_added(
    kind: str, config: ModelConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What a corpus was packed with goes before what the model that a run began as says."""
    original = load_tokenizer(request.getfixturevalue(kind))
    for name, of_corpus, kept, expected in (("both", 1, 0, 1), ("kept", None, 1, 1), ("neither", None, None, None)):
        (tmp_path / name).mkdir()
        original.save(tmp_path / name, of_corpus)
        assert load_tokenizer(tmp_path / name).fingerprint == original.fingerprint
        options = {"tokenizer_folder": tmp_path / name, "kept": {} if kept is None else {"bos_token_id": kept}}
        loaded = AutoTokenizer.from_pretrained(exported(trained(config), tmp_path / f"{name}-out", **options))
        assert loaded.bos_token_id == expected
        assert loaded(TEXTS).input_ids == [ids.tolist() for ids in original.encode_batch(TEXTS)]


def test_special_tokens_that_were_read_as_text(byte_bpe: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    original = load_tokenizer(byte_bpe, None, "text")
    original.save(packed)
    out = exported(trained(MODELS["deconattn"]), tmp_path / "out", tokenizer_folder=packed)
    for trust in (None, True):
        loaded = AutoTokenizer.from_pretrained(out, trust_remote_code=trust)
        for text, ids in zip(TEXTS, original.encode_batch(TEXTS), strict=True):
            assert loaded(text).input_ids == ids.tolist(), text
            assert original.eos_token_id not in loaded(text).input_ids
        assert loaded.eos_token_id == original.eos_token_id


def test_a_clean_file_is_copied_byte_for_byte(byte_pairs: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_pairs / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.post_processor = processors.ByteLevel()
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), indent=7))
    out = exported(trained(MODELS["deconattn"]), tmp_path / "out", tokenizer_folder=source)
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_other_ids_are_refused(sentencepiece: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = tokenizer_files.from_sentencepiece

    def lowered(path: Path) -> Tokenizer:
        tokenizer = convert(path)
        tokenizer.normalizer = normalizers.Lowercase()
        return tokenizer

    monkeypatch.setattr(tokenizer_files, "from_sentencepiece", lowered)
    with pytest.raises(UserError, match="--no-tokenizer"):
        exported(trained(MODELS["qwen2"]), tmp_path / "out", tokenizer_folder=sentencepiece)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"model_type": "bpe"},
        {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
        {"model_type": "unigram", "normalization_rule_name": "identity", "user_defined_symbols": ["<|sep|>"]},
    ],
    ids=["T5's", "BPE", "Llama's", "own symbols"],
)
def test_other_sentencepiece_models(options: dict[str, object], documents: list[str], tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    lines = [line for document in documents for line in document.split("\n") if line]
    prefix = tmp_path / "model"
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=500, minloglevel=3, **options
    )
    original = SentencePieceProcessor(model_file=f"{prefix}.model")
    converted = tokenizer_files.from_sentencepiece(tmp_path / "model.model")
    converted.encode_special_tokens = True
    for text in [*TEXTS, *lines[:200], "a <|sep|> b", "<|sep|><|sep|>x<|sep"]:
        assert converted.encode(text).ids == original.encode(text), text


def test_a_model_without_a_counterpart_is_refused(documents: list[str], tmp_path: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    prefix = tmp_path / "model"
    SentencePieceTrainer.train(
        sentence_iterator=iter(documents[0].split("\n")),
        model_prefix=str(prefix),
        model_type="char",
        vocab_size=20,
        minloglevel=3,
    )
    with pytest.raises(UserError, match="neither a unigram nor a BPE"):
        tokenizer_files.from_sentencepiece(tmp_path / "model.model")
