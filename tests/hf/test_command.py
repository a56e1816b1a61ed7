"""tools/export_hf.py: from a checkpoint to a folder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from deconattn.checkpoint import format as checkpoint
from deconattn.commands import export
from tests.hf.models import small_config, trained


@pytest.mark.parametrize(
    ("precision", "flags", "stored"),
    [("fp32", [], "float32"), ("bf16", [], "bfloat16"), ("bf16", ["--dtype", "fp32"], "float32")],
)
def test_the_runs_own_precision_by_default(
    precision: str, flags: list[str], stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(small_config("mlp", "rndemb"))
    opened = SimpleNamespace(
        folder=tmp_path / "run" / "step-12",
        step=12,
        model_config=model.config,
        precision=precision,
        plugins=(),
        datasets=("web",),
        origin={},
        tokenizer_folder=None,
        weights=model.state_dict,
    )
    opened.with_plugins = lambda plugins, trusted: opened
    monkeypatch.setattr(checkpoint, "open_checkpoint", {tmp_path / "run": opened}.__getitem__)
    out = tmp_path / "out"
    export.main([str(tmp_path / "run"), str(out), *flags])
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == stored
    assert config["layer_variants"] == ["mlp", "rndemb"]
    assert "| training steps | 12 |" in (out / "README.md").read_text()
