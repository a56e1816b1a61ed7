"""vLLM itself, where it is installed: the double's signatures, and whole engines against our logits (-m slow)."""

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deconattn.model.causal_lm import CausalLM
from tests.hf.models import MIXED, exported, small_config, tokens, trained
from tests.serving import vllm_double

vllm = pytest.importorskip("vllm", exc_type=ImportError)

ROOT = Path(__file__).parents[2]
NEW_TOKENS = 8
PLAIN = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
GROUPED = {
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_norm": True,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "eager": (MIXED, PLAIN, {}),
    "compiled": (MIXED, PLAIN, {"enforce_eager": False}),
    "in chunks": (MIXED, PLAIN, {"max_num_batched_tokens": 16, "max_num_seqs": 4}),
    "grouped, normed, tied": (MIXED, GROUPED, {}),
    "two tensor-parallel ranks": (MIXED, GROUPED, {"tensor_parallel_size": 2}),
    # Compiled: on a CPU, vLLM's warm-up, which makes what a later stage receives into, is left out in eager mode.
    "two pipeline stages": (
        ("standard", "staticemb", "mlp", "staticemb"),
        PLAIN,
        {"pipeline_parallel_size": 2, "enforce_eager": False},
    ),
    "no attention": (("mlp", "mlp"), PLAIN, {}),
}


@pytest.mark.parametrize("path", vllm_double.CONTENTS)
def test_the_double_has_the_signatures_of_vllm(path: str) -> None:
    real = importlib.import_module(path)
    for name, ours in vllm_double.CONTENTS[path].items():
        theirs = getattr(real, name)
        if inspect.isfunction(ours):
            assert_follows(ours, theirs)
        elif inspect.isclass(ours):
            for method, function in vars(ours).items():
                # A platform's operation takes anything, and hands it on to its own.
                own = f"{method}_native" if hasattr(theirs, f"{method}_native") else method
                if inspect.isfunction(function) and hasattr(theirs, own):
                    assert_follows(function, getattr(theirs, own))


def assert_follows(ours: Any, theirs: Any) -> None:
    """Every parameter of ours is one of theirs, at the same place if it may be given by place, with its default."""
    mine, known = (
        [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
        for function in (ours, theirs)
    )
    for place, parameter in enumerate(mine):
        (same,) = [one for one in known if one.name == parameter.name] or [None]
        assert same is not None, f"{theirs} has no {parameter.name}"
        if parameter.kind is not parameter.KEYWORD_ONLY:
            assert known[place] is same, f"{theirs} has {parameter.name} elsewhere"
        if parameter.default is not parameter.empty:
            assert same.default == parameter.default, f"{theirs} has another default of {parameter.name}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_engine_gives_our_logits(case: str, tmp_path: Path) -> None:
    variants, dimensions, options = CASES[case]
    model = trained(small_config(*variants, **dimensions))
    prompts = [tokens(1, length, length)[0].tolist() for length in (70, 9, 1, 33)]
    for prompt, answer in zip(prompts, serve(model, tmp_path, prompts, options), strict=True):
        with torch.no_grad():
            expected = model.logits(torch.tensor([prompt + answer["ids"][:-1]]))[0, -NEW_TOKENS:]
        torch.testing.assert_close(torch.tensor(answer["logits"]), expected, atol=1e-4, rtol=0)
        assert answer["ids"] == expected.argmax(dim=-1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        (("standard", "approximate"), {}, "UserError: variant 'approximate' cannot be served by vLLM"),
        (("fixedseq",), {"pipeline_parallel_size": 2}, "UserError: --pipeline-parallel-size 2"),
    ],
)
def test_an_engine_refuses_what_it_would_serve_wrongly(
    variants: tuple[str, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    done = run(trained(small_config(*variants, **PLAIN)), tmp_path, [[1]], options)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(f"deconattn.errors.{message}")


def serve(
    model: CausalLM, folder: Path, prompts: list[list[int]], options: dict[str, Any]
) -> list[dict[str, list[Any]]]:
    """What a fresh engine answers."""
    done = run(model, folder, prompts, options)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((folder / "answer.json").read_text())


def run(
    model: CausalLM, folder: Path, prompts: list[list[int]], options: dict[str, Any]
) -> "subprocess.CompletedProcess[str]":
    """A fresh engine in a process of its own, which leaves `answer.json`."""
    request = folder / "request.json"
    request.write_text(json.dumps({"options": options, "prompts": prompts, "tokens": NEW_TOKENS}))
    out = exported(model, folder / "out")
    command = [sys.executable, "-m", "tests.serving.serve_once", out, request, folder / "answer.json"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # of several ranks it would want a NUMA node each
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process less to start
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
