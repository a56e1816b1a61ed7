"""What a third party's mixer makes in its `__init__` arrives in training, on every topology, and in what it saves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from deconattn.checkpoint.format import open_checkpoint
from deconattn.errors import UserError
from deconattn.hf.export import export
from deconattn.launch.preflight import checked_flags
from deconattn.mixers import mixer_class, registry
from deconattn.mixers.plugins import load_plugins
from deconattn.model.causal_lm import CausalLM
from tests.conftest import ROOT
from tests.ranks import Ranks
from tests.train.conftest import losses
from tests.train.jobs import run_job, train

BIASED = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
"""The documentation's example."""
KERNEL = "self.kernel = nn.Conv1d(1, 1, 3)"
PARTS = ("slopes", "decay", "kernel.weight", "kernel.bias", "scale", "o_proj.weight")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = dict(registry._REGISTRY)
    path = tmp_path_factory.mktemp("plugin") / "biased.py"
    path.write_text(BIASED)
    load_plugins([path])
    yield path
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


@pytest.fixture
def biased(small: list[str], plugin: Path) -> list[str]:
    return [*small, "--plugin", str(plugin), "--pattern", "biased,standard"]


def test_it_is_kept_saved_and_exported(biased: list[str], plugin: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = {
        name: tensor.clone()
        for name, tensor in run_job(["stop=1", *biased, "--lr", "1e-30", "--save", str(run)])
        .engine.model.state_dict()
        .items()
    }
    own = mixer_class("biased")(open_checkpoint(run).model_config)
    prefix = "model.layers.0.self_attn"
    for name in ("slopes", "decay"):
        assert_close(start[f"{prefix}.{name}"], own.state_dict()[name], rtol=1e-6, atol=0)
    assert (start[f"{prefix}.o_proj.weight"] == 0.01).all()
    assert 1 <= start[f"{prefix}.scale"] <= 2
    assert start[f"{prefix}.kernel.weight"].abs().max() > 0.1
    checkpoint = open_checkpoint(run)
    weights = checkpoint.weights()
    assert all(torch.equal(weights[f"{prefix}.{name}"], start[f"{prefix}.{name}"]) for name in PARTS)
    export(
        weights, checkpoint.model_config, tmp_path / "out", dtype=torch.float32, tokenizer_folder=None, plugins=[plugin]
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ours = CausalLM(checkpoint.model_config)
    ours.load_state_dict(weights)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert_close(theirs(ids).logits, ours.logits(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--tp 2 --sequence-parallel", "--tp 2", "--pp 2", "--zero 3"])
def test_every_topology_trains_alike(
    biased: list[str], flags: str, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    run_job([*biased, "--save", str(tmp_path / "one")])
    assert ranks(2)(train, arguments=[*biased, *flags.split(), "--save", str(tmp_path / "two")]) is None
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (open_checkpoint(tmp_path / name).weights() for name in ("one", "two"))
    for name in PARTS:
        name = f"model.layers.0.self_attn.{name}"
        # AdamW divides by the root of a second moment of a few steps: the last bits of that are a share of a step
        assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "flags", "said"),
    [
        (
            ', "decay": column("num_attention_heads")',
            "",
            "--tp 2",
            "cannot be cut for --tp 2 .*: name in `splits`",
        ),
        (
            "return self.output(",
            "return 1 + self.output(",
            "--tp 2",
            "the parts of --tp 2 do not sum to the whole",
        ),
        ("torch.rand(1) + 1", "torch.rand(())", "--tp 1", "'scale' of Biased is a scalar"),
        ("1, heads + 1))", "1, heads + 1), persistent=False)", "--tp 1", "'slopes' of Biased is lost in checkpoints"),
        (
            KERNEL,
            f"{KERNEL}; self.table = [torch.ones(3)]",
            "--tp 1",
            "tensor 'table' of Biased is lost",
        ),
        (
            KERNEL,
            f"{KERNEL}; self.kernel.shift = torch.rand(1, device='cpu').item()",
            "--tp 1",
            "'kernel.shift' of Biased is drawn and lost in checkpoints",
        ),
        (
            KERNEL,
            f"{KERNEL}; self.v_proj.weight = self.k_proj.weight",
            "--tp 1",
            "'v_proj.weight' of Biased is another",
        ),
        (
            "torch.rand(1) + 1",
            "torch.full((1,), torch.rand(1).item())",
            "--tp 1",
            'Biased is built before its tensors have values .*: .* make that one with device="cpu"',
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_rank_starts(
    old: str, new: str, flags: str, said: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BIASED.count(old) == 1
    other = tmp_path / "other.py"
    other.write_text(BIASED.replace(old, new).replace('"biased"', '"other"'))
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    with pytest.raises(UserError, match=said):
        checked_flags([*small, "--plugin", str(other), "--variant", "other", "--pattern", "uniform", *flags.split()])
