"""model.gguf: what was trained, in llama.cpp's terms, or a refusal in one line."""

import ctypes
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from deconattn import extras
from deconattn.checkpoint import format as checkpoint
from deconattn.cli import parse
from deconattn.commands import export as tool
from deconattn.data.tokenizing.disagreements import AWKWARD_TEXTS, with_added_tokens
from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.data.tokenizing.training import Training, train_tokenizer
from deconattn.errors import UserError
from deconattn.hf.gguf_file import gguf_vocabulary
from deconattn.hf.gguf_tokenizer import read_vocabulary
from deconattn.hf.tokenizer_files import _SAMPLES
from deconattn.layers.config import ModelConfig
from deconattn.layers.rope_scaling import RopeScaling
from tests.hf.models import exported, small_config, tokens, trained

gguf = pytest.importorskip("gguf")

DEMO = Path(__file__).parents[2] / "deconattn" / "data" / "demo" / "shakespeare.jsonl"
STAGED = Path(__file__).parents[3] / "shared" / "data" / "tokenizer" / "20B_tokenizer.json"
VOCAB = 600
QWEN3 = {"qk_norm": True, "attention_bias": False}
CONFIGS = {
    "qwen2": small_config("standard", "standard", vocab_size=VOCAB, num_key_value_heads=2, rms_norm_eps=1e-5),
    "qwen2 tied": small_config("standard", vocab_size=VOCAB, tie_word_embeddings=True),
    "qwen3": small_config("standard", "standard", vocab_size=VOCAB, num_key_value_heads=1, head_dim=12, **QWEN3),
    "llama": small_config("standard", "standard", vocab_size=VOCAB, num_key_value_heads=2, attention_bias=False),
    "llama wide heads": small_config("standard", vocab_size=VOCAB, head_dim=12, attention_bias=False),
    "qwen3 tied": small_config("standard", vocab_size=VOCAB, tie_word_embeddings=True, rope_theta=1e6, **QWEN3),
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


def byte_level(use_regex: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern: str, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior), byte_level(use_regex=False)])


PRE_TOKENIZERS: dict[str, tuple[pre_tokenizers.PreTokenizer, bool]] = {
    "trillion": (byte_level(), False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]), False),
    "llama-bpe": (split(LLAMA3), True),
    "smaug-bpe": (split(LLAMA3), False),
    "qwen2": (split(QWEN2), False),
}
"""By llama.cpp's name; with ignore_merges."""


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [json.loads(line)["text"] for line in DEMO.read_text(encoding="utf-8").splitlines()[:40]]


@pytest.fixture(scope="module")
def ours(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE that we trained."""
    folder = tmp_path_factory.mktemp("ours")
    return train_tokenizer([*documents, "1999 2000 1234 " * 50], Training("byte-bpe", 500), folder).parent


@pytest.fixture(scope="module")
def like_pythias(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pythia's kind: NFC, two special tokens, and runs of spaces that are added tokens."""
    tokenizer = _byte_pairs(documents, byte_level())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in range(24, 1, -1)])
    folder = tmp_path_factory.mktemp("pythia")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _byte_pairs(documents: list[str], pre_tokenizer: pre_tokenizers.PreTokenizer, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*documents, "1999 2000 1234 'Ve 'LL été ΣΑΣ " * 50], trainer)
    return tokenizer


def _write(model: Any, out: Path, tokenizer: Path, **changes: object) -> Path:
    vocabulary = gguf_vocabulary(model.config, tokenizer)
    return exported(model, out, tokenizer_folder=tokenizer, gguf=vocabulary, **changes) / "model.gguf"


def _metadata(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def _own_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *parts, suffix = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(parts)]}.{suffix}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_there(name: str, dtype: torch.dtype, ours: Path, tmp_path: Path) -> None:
    model = trained(CONFIGS[name])
    reader = gguf.GGUFReader(_write(model, tmp_path / "out", ours, dtype=dtype))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    expected = {_own_name(name): tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        assert (expected.pop("output.weight") == expected["token_embd.weight"]).all()
    assert stored.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        if name.startswith("llama") and ("attn_q" in tensor_name or "attn_k" in tensor_name):
            heads = tensor.unflatten(0, (-1, model.config.head_dim))
            halves = heads.split(model.config.head_dim // 2, dim=1)
            tensor = torch.stack(halves, dim=2).flatten(0, 2)  # channel 0, channel half, channel 1, ...
        is_bfloat16 = dtype == torch.bfloat16 and tensor.dim() == 2
        assert stored[tensor_name].tensor_type.name == ("BF16" if is_bfloat16 else "F32")
        data = torch.tensor(stored[tensor_name].data)
        assert torch.equal(data.view(dtype) if is_bfloat16 else data.to(dtype), tensor.to(dtype)), tensor_name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_dimensions_are_the_models(name: str, ours: Path, tmp_path: Path) -> None:
    config, kind = CONFIGS[name], name.split()[0]
    metadata = _metadata(_write(trained(config), tmp_path / "out", ours))
    dimensions = {name.removeprefix(f"{kind}."): value for name, value in metadata.items() if name.startswith(kind)}
    assert metadata["general.architecture"] == kind
    assert metadata["general.file_type"] == 0
    assert dimensions == {
        "vocab_size": VOCAB,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": pytest.approx(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }


def test_the_vocabulary_is_the_tokenizers(like_pythias: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(like_pythias / "tokenizer.json"))
    metadata = _metadata(_write(trained(CONFIGS["qwen2"]), tmp_path / "out", like_pythias))
    own = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items() if "tokenizer" in name}
    used = tokenizer.get_vocab_size()
    assert used == 523
    assert own["tokens"][:used] == [tokenizer.id_to_token(index) for index in range(used)]
    assert len(set(own["tokens"])) == VOCAB
    normal, control, added, unused = 1, 3, 4, 5
    assert own["token_type"] == [control] * 2 + [normal] * 498 + [added] * 23 + [unused] * (VOCAB - used)
    document = json.loads(tokenizer.to_str())
    assert own["merges"] == [" ".join(merge) for merge in document["model"]["merges"]]
    assert (own["model"], own["pre"]) == ("gpt2", "trillion")
    assert own["add_bos_token"] is own["add_eos_token"] is False
    assert own["bos_token_id"] == own["eos_token_id"] == own["padding_token_id"] == 0


def test_the_same_weights_give_the_same_bytes(ours: Path, tmp_path: Path) -> None:
    model = trained(CONFIGS["qwen3"])
    first, second = (_write(model, tmp_path / name, ours).read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_file_with_merges_as_text_is_the_same(ours: Path, tmp_path: Path) -> None:
    document = json.loads((ours / "tokenizer.json").read_text())
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert read_vocabulary(tmp_path, VOCAB) == read_vocabulary(ours, VOCAB)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_way_of_cutting_goes_by_what_it_does(name: str, documents: list[str], tmp_path: Path) -> None:
    pre_tokenizer, ignore_merges = PRE_TOKENIZERS[name]
    _byte_pairs(documents, pre_tokenizer, ignore_merges=ignore_merges).save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path, VOCAB)
    assert vocabulary.pre == name
    assert vocabulary.notes == ()


def _prefix_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _metaspace(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()


def _no_words(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = byte_level(use_regex=False)


def _other_pattern(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = split(QWEN2 + r"|\p{Han}+")


def _removed(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = split(QWEN2, "removed")


def _all_digits(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), byte_level()])


def _bytes_twice(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([byte_level(), byte_level(use_regex=False)])


def _lowercase(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def _strip(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])


def _single_word(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("mask", single_word=True)])


def _runs_into(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<a><b>"), AddedToken("<b><c><d>")])


def _holds(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<a><b><c>", normalized=True), AddedToken("<b>", normalized=False)])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_prefix_space, "add_prefix_space"),
        (_metaspace, "Metaspace"),
        (_no_words, "ByteLevel"),
        (_other_pattern, "Han"),
        (_removed, "Removed"),
        (_all_digits, "Digits"),
        (_bytes_twice, "ByteLevel"),
        (_lowercase, r"normalizer like NFC+Lowercase"),
        (_strip, "lstrip ('<mask>')"),
        (_single_word, "single_word ('mask')"),
        (_runs_into, "'<a><b>' or '<b><c><d>'"),
        (_holds, "'<a><b><c>' or '<b>'"),
    ],
)
def test_what_llama_cpp_reads_otherwise_is_refused(
    change: Callable[[Tokenizer], None], named: str, ours: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(ours / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    _refused(lambda: read_vocabulary(tmp_path, VOCAB), "would read other tokens", named, "leave out --gguf")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda document: document["model"].update(ignore_merges=True), "and ignore_merges"),
        (lambda document: document["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda document: document["model"]["vocab"].pop("Ā"), "bytes (1 are missing)"),
        (lambda document: document.update(added_tokens=[]), "separator"),
    ],
    ids=["ignore_merges", "suffix", "bytes", "separator"],
)
def test_other_models_are_refused(
    change: Callable[[dict[str, Any]], None], named: str, ours: Path, tmp_path: Path
) -> None:
    document = json.loads((ours / "tokenizer.json").read_text())
    change(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    _refused(lambda: read_vocabulary(tmp_path, VOCAB), named, "leave out --gguf")


def test_more_tokens_than_rows_are_refused(ours: Path) -> None:
    _refused(lambda: read_vocabulary(ours, 499), "500 tokens but the model 499 rows")


def test_a_sentencepiece_tokenizer_is_refused(documents: list[str], tmp_path: Path) -> None:
    folder = train_tokenizer(documents, Training("unigram", 400), tmp_path).parent
    _refused(lambda: gguf_vocabulary(CONFIGS["qwen2"], folder), str(folder), "SentencePiece", "train:byte-bpe")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (small_config("standard", "rndemb"), "rndemb"),
        (small_config("standard", "nope", attention_bias=False), "nope"),
        (small_config("standard", qk_norm=True), "none of them"),
        (small_config("standard", head_dim=12), "none of them"),
        (small_config("standard", rope_scaling=RopeScaling("linear", 2.0)), "rope scaling (linear)"),
    ],
)
def test_models_that_llama_cpp_cannot_run_are_refused(config: ModelConfig, named: str, ours: Path) -> None:
    _refused(lambda: gguf_vocabulary(config, ours), named, "leave out --gguf")


def test_no_tokenizer_is_refused() -> None:
    _refused(lambda: gguf_vocabulary(CONFIGS["qwen2"], None), "tokenizer")


def _refused(action: Callable[[], object], *named: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in named), message


class TestCommand:
    """tools/export_hf.py --gguf."""

    @pytest.fixture
    def opened(self, like_pythias: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        model = trained(CONFIGS["qwen2"])
        opened = SimpleNamespace(
            folder=tmp_path / "run" / "step-12",
            step=12,
            model_config=model.config,
            precision="bf16",
            plugins=(),
            datasets=("web",),
            origin={},
            tokenizer_folder=like_pythias,
            weights=model.state_dict,
        )
        opened.with_plugins = lambda plugins, trusted: opened
        monkeypatch.setattr(checkpoint, "open_checkpoint", {tmp_path / "run": opened}.__getitem__)
        return opened

    def test_writes_it_beside_the_rest(
        self,
        opened: SimpleNamespace,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        tool.export_checkpoint(parse(tool.Arguments, [str(tmp_path / "run"), str(tmp_path / "out"), "--gguf"]))
        [note] = capsys.readouterr().err.splitlines()
        assert note.startswith("note: model.gguf: this tokenizer brings text to Unicode's NFC")
        assert _metadata(tmp_path / "out" / "model.gguf")["general.file_type"] == 32  # mostly bfloat16
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    def test_is_not_written_unasked(self, opened: SimpleNamespace, tmp_path: Path) -> None:
        tool.export_checkpoint(parse(tool.Arguments, [str(tmp_path / "run"), str(tmp_path / "out")]))
        assert not list((tmp_path / "out").glob("*.gguf"))

    def test_refuses_before_reading_the_weights(self, opened: SimpleNamespace, tmp_path: Path) -> None:
        opened.weights = lambda: pytest.fail("the weights were read")
        flags = [str(tmp_path / "run"), str(tmp_path / "out"), "--gguf", "--no-tokenizer"]
        _refused(lambda: tool.export_checkpoint(parse(tool.Arguments, flags)), "tokenizer")
        assert not (tmp_path / "out").exists()

    def test_without_the_package_the_extra_is_named(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(extras, "missing", {"gguf": "gguf"}.get)
        monkeypatch.setattr(checkpoint, "open_checkpoint", lambda source: pytest.fail("the checkpoint was opened"))
        flags = [str(tmp_path / "run"), str(tmp_path / "out"), "--gguf"]
        _refused(lambda: tool.export_checkpoint(parse(tool.Arguments, flags)), "[gguf]")


class TestLlamaCpp:
    """What llama.cpp makes of the file, where llama-cpp-python is installed."""

    @pytest.fixture
    def load(self) -> Callable[..., Any]:
        llama_cpp = pytest.importorskip("llama_cpp")
        # Keys and values in float32: the default of float16 alone moves logits by more than 1e-3.
        f32 = llama_cpp.GGML_TYPE_F32
        return lambda path, **options: llama_cpp.Llama(
            str(path), n_ctx=64, logits_all=True, type_k=f32, type_v=f32, verbose=False, **options
        )

    @pytest.mark.parametrize("name", CONFIGS)
    def test_logits_are_the_models(self, name: str, load: Callable[..., Any], ours: Path, tmp_path: Path) -> None:
        path = _write(trained(CONFIGS[name]), tmp_path / "out", ours)
        ids = tokens(1, 60)
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(path.parent)(ids).logits[0]
        llama = load(path)
        llama.eval(ids[0].tolist())
        actual = torch.from_numpy(llama.scores[:60])
        assert expected.std() > 0.1  # a thousandth is small beside what is compared
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)

    def test_bfloat16_runs(self, load: Callable[..., Any], ours: Path, tmp_path: Path) -> None:
        path = _write(trained(CONFIGS["qwen2"]), tmp_path / "out", ours, dtype=torch.bfloat16)
        ids = tokens(1, 60)
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32)
            expected = model(ids).logits[0]
        llama = load(path)
        llama.eval(ids[0].tolist())
        error = (torch.from_numpy(llama.scores[:60]) - expected).norm() / expected.norm()
        assert error < 2e-2  # activations are rounded to 8 bits of mantissa, there as here

    @pytest.mark.parametrize("kind", ["ours", "like_pythias", "staged"])
    def test_tokens_are_the_tokenizers(
        self, kind: str, load: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        config = CONFIGS["qwen2"]
        if kind == "staged":
            if not STAGED.is_file():
                pytest.skip("needs the staged tokenizer of Pythia")
            (tmp_path / "tokenizer.json").write_bytes(STAGED.read_bytes())
            source, config = tmp_path, small_config("standard", vocab_size=50_304)
        else:
            source = request.getfixturevalue(kind)
        _assert_same_tokens(load, source, config, tmp_path / "out")

    @pytest.mark.parametrize("name", PRE_TOKENIZERS)
    def test_every_way_of_cutting_is_the_same(self, name: str, load: Callable[..., Any], tmp_path: Path) -> None:
        tokenizer = _gluing(*PRE_TOKENIZERS[name])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        config = small_config("standard", vocab_size=tokenizer.get_vocab_size())
        _assert_same_tokens(load, tmp_path, config, tmp_path / "out")


def _gluing(pre_tokenizer: pre_tokenizers.PreTokenizer, ignore_merges: bool) -> Tokenizer:
    """Merges a letter, digit, mark or space with the first or last byte of any character, within a word: cuts show."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    glue = [byte_level().pre_tokenize_str(character)[0][0] for character in "a1.'sT \n"]
    merges = [(one, byte) for one in glue for byte in alphabet] + [(byte, one) for byte in alphabet for one in glue]
    vocabulary = list(dict.fromkeys(["<|endoftext|>", *alphabet, *("".join(merge) for merge in merges)]))
    numbered = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=numbered, merges=list(dict.fromkeys(merges)), ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def _assert_same_tokens(load: Callable[..., Any], source: Path, config: ModelConfig, out: Path) -> None:
    vocabulary = gguf_vocabulary(config, source)
    llama = load(_write(trained(config), out, source), vocab_only=True)
    tokenizer = load_tokenizer(source)
    keeps_spaces = vocabulary.pre not in ("llama-bpe", "smaug-bpe")  # it has no name for theirs that does
    texts = [
        "Or not , he said ; who 's there ? I ' ll see .",
        *_SAMPLES,
        *AWKWARD_TEXTS,
        *with_added_tokens(tokenizer.added_tokens()),
        *_random_texts(600),
    ]
    if vocabulary.notes:  # NFC is the caller's part there
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    for text, expected in zip(texts, tokenizer.encode_batch(texts), strict=True):
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == expected.tolist(), repr(text[:200])
        if keeps_spaces:
            assert _text(llama, ids) == text.encode()


def _text(llama: Any, ids: list[int]) -> bytes:
    """By llama.cpp's own function: the binding's leaves out tokens of more than 32 bytes."""
    import llama_cpp

    array, buffer = (llama_cpp.llama_token * len(ids))(*ids), ctypes.create_string_buffer(200 * len(ids) + 1)
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    length = llama_cpp.llama_detokenize(vocabulary, array, len(ids), buffer, len(buffer), False, True)
    return buffer.raw[:length]


def _random_texts(count: int) -> list[str]:
    """Words, spaces and marks of all scripts in any order.

    Not in them: characters that came later than llama.cpp's Unicode tables, and the long s, which alone is an s to a
    pattern that ignores case and not to llama.cpp ("'\u017f").
    """
    generator = random.Random(0)
    old = unicodedata.ucd_3_2_0
    assigned = [chr(code) for code in range(0x110000) if old.category(chr(code)) not in ("Cn", "Cs", "Co")]
    assigned.remove("\u017f")
    pools = [
        list(" \n\r\t'"),
        list("abcdestrvmlESTLD"),
        list("0123456789"),
        list('.,;:!?-_()[]{}<>|/\\"$%&'),
        ["'s", "'T", "'re", "'VE", "  ", "\r\n", "\n\n", "<|endoftext|>", "the", "tion"],
        [character for character in assigned if ord(character) < 0x3000],
        assigned,
    ]
    return [
        "".join(generator.choice(generator.choice(pools)) for _ in range(generator.randint(1, 60)))
        for _ in range(count)
    ]
