"""Damaged Hugging Face folders: convert and every command that opens a model refuse them in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.checkpoint.stored_model import open_model
from deconattn.convert.new_run import write_run
from deconattn.errors import UserError
from tests.convert.damage import damaged
from tests.hf.models import exported, small_config, trained


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, Path]:
    """A Qwen2 model and an export of ours, each with the corpus's tokenizer."""
    root = tmp_path_factory.mktemp("sources")
    for name, variants in {"ours": ("rndemb", "standard"), "stock": ("standard", "standard")}.items():
        exported(trained(small_config(*variants, vocab_size=512)), root / name, tokenizer_folder=corpus)
    return {name: root / name for name in ("ours", "stock")}


WAYS: dict[str, Callable[[Path, Path, Path], object]] = {
    "open": lambda folder, corpus, out: open_model(folder).load(),
    "convert": lambda folder, corpus, out: write_run(folder, out, ["--data", str(corpus), "--seq-len", "16"]),
}
HARMLESS = ("tokenizer.json is a", "tokenizer_config.json is a", "generation_config.json")
"""Damages to files that a way may do without."""


def refused(sources: dict[str, Path], corpus: Path, tmp_path: Path, seeds: range) -> None:
    wrong = []
    for seed in seeds:
        for kind, source in sources.items():
            folder, out = tmp_path / f"{kind}-{seed}", tmp_path / f"out-{kind}-{seed}"
            shutil.copytree(source, folder)
            told = f"{kind} {damaged(folder, seed)}"
            for name, way in WAYS.items():
                try:
                    way(folder, corpus, out)
                    if not any(one in told for one in HARMLESS) and not _may_pass(told):
                        wrong.append(f"{told}: {name} took it")
                except UserError as error:
                    if "\n" in str(error) or str(folder) not in str(error):
                        wrong.append(f"{told}: {name} said {error!s:.200}")
                    if out.exists():
                        wrong.append(f"{told}: {name} wrote")
                except Exception as error:
                    wrong.append(f"{told}: {name} raised {error!r:.200}")
            shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def _may_pass(told: str) -> bool:
    """Whether the damage leaves another, whole configuration."""
    return any(
        f"{name} = {value}" in told
        for name, values in {
            "max_position_embeddings": ("1000000000",),
            "num_key_value_heads": ("None",),
            "layer_types": ("None", "[]", "{}", ""),
            "rope_parameters": ("None", "{}"),
            "rms_norm_eps": ("0", "3.5", "1000000000", "None", "1" + "0" * 30),
            "hidden_act": ("silu",),
            "num_attention_heads": ("None",),
        }.items()
        for value in values
    )


def test_whole_folders_pass(sources: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    for kind, source in sources.items():
        for way in WAYS.values():
            way(source, corpus, tmp_path / kind)


def test_some_damages(sources: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    refused(sources, corpus, tmp_path, range(24))


@pytest.mark.slow
def test_many_damages(sources: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    refused(sources, corpus, tmp_path, range(24, 500))
