"""tools/generate.py: a continuation on standard output, and nothing else there."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deconattn.checkpoint.stored_model import open_model
from deconattn.generation.continuation import TextStream, continue_text
from deconattn.generation.sampling import Sampling
from deconattn.generation.text_io import TextOutput
from tests.conftest import TOOLS
from tests.generation.conftest import Call, write_run
from tests.hf.models import LONGEST, MIXED, VOCAB, exported, small_config, trained

PROMPT = "Où est ё? "


@pytest.fixture(scope="module")
def export(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "export"
    return exported(trained(small_config(*MIXED)), out, tokenizer_folder=byte_level)


@pytest.fixture(scope="module")
def run(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "run"
    return write_run(trained(small_config(*MIXED)), byte_level, out, "--precision fp32")


def test_greedy_is_transformers_own(export: Path, call: Call) -> None:
    stored = open_model(export)
    model = stored.load()
    ids = stored.tokenizer(PROMPT, return_tensors="pt").to(model.device)
    expected = model.generate(**ids, do_sample=False, max_new_tokens=30)[0]
    text = stored.tokenizer.decode(expected, skip_special_tokens=True)
    assert call(export, "--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", 30) == (0, f"{text}\n".encode(), "")


def test_a_seed_gives_one_text_from_a_run_and_its_export(run: Path, export: Path, call: Call) -> None:
    flags = ["--prompt", PROMPT, "--max-new-tokens", 30, "--seed"]
    code, text, err = call(run, *flags, 3)
    assert (code, err) == (0, "")
    assert text.decode("utf-8").startswith(PROMPT) and len(text.decode()) > len(PROMPT) + 5
    assert {call(path, *flags, 3)[1] for path in (run, run / "checkpoints/step-7", export)} == {text}
    assert call(run, *flags, 4)[1] != text
    assert call(run, *flags[:-1])[1] != call(run, *flags[:-1])[1]


def test_flag_file_and_pipe_give_one_text(
    export: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt").write_text(f"{PROMPT}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n".encode())))
    flags = ["--seed", 1, "--max-new-tokens", 9]
    ways = [["--prompt", PROMPT], ["--file", tmp_path / "prompt"], []]
    assert len({call(export, *way, *flags) for way in ways}) == 1


def test_temperature_and_top_p_mean_what_they_say(export: Path) -> None:
    stored = open_model(export)
    model = stored.load("fp32")
    prompt = torch.tensor([[5, 6, 7]])

    def ranks(**changes: object) -> torch.Tensor:
        """0 where the likeliest token was taken."""
        sampling = Sampling(max_new_tokens=60, seed=1, **changes)  # type: ignore[arg-type]
        text = continue_text(model, stored.tokenizer, prompt, sampling)
        with torch.no_grad():
            logits = model(text[:, :-1]).logits[0, 2:]
        return (logits > logits.gather(1, text[0, 3:, None])).sum(1)

    assert ranks(temperature=0).max() == 0
    assert ranks(temperature=1, top_p=1e-6).max() == 0
    assert ranks(temperature=1e-6, top_p=1).max() == 0
    assert 0 < ranks(temperature=1, top_p=0.5).max() < ranks(temperature=100, top_p=1).max()
    assert ranks(temperature=100, top_p=1).max() > 0.8 * VOCAB  # all tokens are in play


def test_the_end_of_text_ends_it_and_the_models_own_habits_do_not_count(export: Path, tmp_path: Path) -> None:
    stored = open_model(export)
    model, greedy = stored.load(), Sampling(max_new_tokens=20, temperature=0)
    prompt = torch.tensor([[5, 6, 7]])
    whole = continue_text(model, stored.tokenizer, prompt, greedy)
    new = whole[0, 3:].tolist()
    end = next(token for token in new if token not in new[:2])
    model.generation_config.eos_token_id = [VOCAB - 1, end]
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    cut = continue_text(model, stored.tokenizer, prompt, greedy)
    assert cut[0].tolist() == whole[0, : 3 + new.index(end) + 1].tolist()


def test_a_text_ends_where_the_fixed_stream_does(export: Path, call: Call, refused: Callable[..., str]) -> None:
    tokenizer = open_model(export).tokenizer
    prompt = "é" * 30
    length = len(tokenizer(prompt).input_ids)
    assert 0 < LONGEST - length < LONGEST
    code, out, err = call(export, "--prompt", prompt, "--temperature", 0)
    assert code == 0
    room = LONGEST - length + 1
    assert err == f"note: --max-new-tokens 200 is cut to {room}, where the fixed stream of {LONGEST} tokens ends\n"
    assert call(export, "--prompt", prompt, "--temperature", 0, "--max-new-tokens", room) == (0, out, "")
    error = refused(export, "--prompt", prompt * 3)
    assert f"the prompt has {3 * length} tokens, more than the model's fixed stream of {LONGEST}: shorten it" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prompt a --max-new-tokens 0", "--max-new-tokens 0: give 1 or more"),
        ("--prompt a --temperature -1", "--temperature -1: give 0"),
        ("--prompt a --temperature nan", "--temperature nan"),
        ("--prompt a --temperature 1e-40", "or a number from 1e-6 on"),
        ("--prompt a --top-p 0", "--top-p 0: give a probability"),
        ("--prompt a --top-p 1.1", "--top-p 1.1"),
        ("--prompt a --seed -1", "--seed -1"),
        ("--prompt a --seed 18446744073709551616", "from 0 to 2**64 - 1"),
        ("--prompt a --dtype fp16", "fp16"),
        ("--prompt a --file b", "--prompt and --file are both given"),
        ("--file /nowhere.txt", "/nowhere.txt: No such file"),
        ("--prompt a --plugin /nowhere.py", "--plugin /nowhere.py"),
        ("--promt a", "--promt"),
        ("--prompt", "--prompt"),
    ],
)
def test_wrong_flags(flags: str, message: str, export: Path, refused: Callable[..., str]) -> None:
    assert message in refused(export, *flags.split())


def test_what_is_no_model(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "none", "is not there: give the folder of a run or a model"),
        (tmp_path / "file", "is a file"),
        (tmp_path, "neither a run folder (checkpoints/), nor a checkpoint (step-N), nor a Hugging Face model"),
    ):
        error = refused(path, "--prompt", "a")
        assert str(path) in error and message in error


def test_control_c_ends_the_line_and_says_nothing(export: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    put = TextStream.put

    def interrupted(self: TextStream, value: torch.Tensor) -> None:
        put(self, value)
        if self.tokens == 5:
            signal.raise_signal(signal.SIGINT)

    words = [export, "--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", 30]
    whole = call(*words)[1]
    monkeypatch.setattr(TextStream, "put", interrupted)
    code, out, err = call(*words)
    assert (code, err) == (130, "")
    assert out.endswith(b"\n") and len(out) < len(whole) and whole.startswith(out[:-1])


def test_a_reader_that_has_left_ends_it_quietly(export: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(os.dup(writer), "w") as left:
        patch.setattr(sys, "stdout", left)
        assert call(export, "--prompt", PROMPT, "--max-new-tokens", 9) == (0, b"", "")
    os.close(writer)


def test_a_terminal_dims_the_prompt_and_a_pipe_gets_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for kind, expected in (
        (Terminal, b"\x1b[2m[b]\xc3\xa9 \x1b[0m\xd1\x91"),
        (io.TextIOWrapper, b"[b]\xc3\xa9 \xd1\x91"),
    ):
        content = io.BytesIO()
        output = TextOutput(kind(content, encoding="latin-1"))
        output.prompt("[b]é ")
        output.write("ё")
        assert content.getvalue() == expected


def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, TOOLS / "generate.py", "nowhere", "--prompt", "a", "--top-p", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --top-p 2: give a probability above 0, at most 1\n"
