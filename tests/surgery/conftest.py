"""Models to operate on: random ones of four layers, as runs that have the tokenizer of the corpus."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from deconattn.analysis.models import open_models
from deconattn.commands import convert
from deconattn.surgery.request import Request
from deconattn.surgery.subject import Subject, open_subject

LENGTH = 16
VARIANTS = ("mlp", "nonapproximate", "rndemb", "fixedseq", "staticemb")
OpenSubject = Callable[..., Subject]


def small_request(**changes: object) -> Request:
    settings: dict[str, object] = {"fit_sequences": 6, "fit_steps": 3, "fit_batch": 2, "held_out": 5, "tested": 3}
    return Request(**{"seq_len": LENGTH, "variants": VARIANTS, **settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 model whose mixers matter: width 32, 4 query heads on 2 key/value heads."""
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("source") / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_run(source: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Begin a run with the model's weights and a pattern."""

    def make(pattern: str) -> Path:
        out = tmp_path_factory.mktemp("runs") / "run"
        convert.main([str(source), str(out), *f"--data {corpus} --seq-len {LENGTH} --pattern {pattern}".split()])
        return out

    return make


@pytest.fixture(scope="session")
def model(make_run: Callable[[str], Path]) -> Path:
    """The model as a run, all standard."""
    return make_run("4*standard")


@pytest.fixture(scope="session")
def open_run(corpus: Path) -> OpenSubject:
    def opened(path: Path, **changes: object) -> Subject:
        [stored] = open_models([path])
        return open_subject(stored, small_request(data=corpus, **changes))

    return opened
