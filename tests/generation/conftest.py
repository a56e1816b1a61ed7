"""A tokenizer whose tokens are bytes and little more, runs that were never trained, and the tool."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from deconattn.checkpoint.format import CHECKPOINTS, write_whole
from deconattn.checkpoint.manifest import Progress, write_manifest
from deconattn.checkpoint.stored_model import StoredModel
from deconattn.cli import run
from deconattn.commands import generate as tool
from deconattn.config.command_line import parse_training_flags, to_json
from deconattn.config.run_config import RUN_CONFIG
from deconattn.model.causal_lm import CausalLM
from tests.conftest import DEMO
from tests.hf.models import VOCAB

Call = Callable[..., tuple[int, bytes, str]]


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer.json of 300 tokens; most characters beyond ASCII take several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    with DEMO.open(encoding="utf-8") as lines:
        tokenizer.train_from_iterator([json.loads(next(lines))["text"]], trainer)
    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def hf_tokenizer(byte_level: Path) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(byte_level / "tokenizer.json"), eos_token="<|endoftext|>")


@pytest.fixture
def call(capsysbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Run the tool in this process: exit code, bytes of standard output, text of standard error."""

    def call(*words: object) -> tuple[int, bytes, str]:
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run(lambda: tool.main([str(word) for word in words]))
        out, err = capsysbinary.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err.decode()

    return call


@pytest.fixture
def refused(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the tool, which must stop at one line before it reads a weight; the line."""

    def load(*_: object) -> None:
        pytest.fail("the weights were read before everything was checked")

    def refused(*words: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(StoredModel, "load", load)
            code, out, err = call(*words)
        assert (code, out) == (2, b"")
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return refused


def write_run(model: CausalLM, tokenizer: Path | None, out: Path, flags: str = "", number: int = 7) -> Path:
    """A run folder whose step `number` holds this model."""
    step = out / CHECKPOINTS / f"step-{number}"
    step.mkdir(parents=True)
    tensors = [*model.canonical_parameters().items(), *model.named_buffers()]
    write_whole(step, {name: {"weights": tensor} for name, tensor in tensors})
    if tokenizer is not None:
        (step / "tokenizer").mkdir()
        (step / "tokenizer" / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    content = {
        "flags": to_json(parse_training_flags(flags.split())),
        "model": dataclasses.asdict(model.config),
        "data": [],
    }
    for folder in (step, out):
        (folder / RUN_CONFIG).write_text(json.dumps(content))
    write_manifest(step, Progress(number, number, 0))
    return out
