"""A plugin that a run folder names is somebody's code: it runs after it was asked for, and not before."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.checkpoint.format import open_checkpoint
from deconattn.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from deconattn.checkpoint.stored_model import open_model
from deconattn.commands import analyze, evaluate, export, generate
from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.mixers import registry
from tests.conftest import SMALL
from tests.train.jobs import run_job

_number = itertools.count()
CODE = """
from pathlib import Path
from deconattn.mixers import MLP, register

Path(__file__).with_suffix(".ran").touch()

@register("foreign{number}")
class Foreign(MLP):
    pass
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture(scope="module")
def trained(process_group: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one of our variants, which :func:`foreign` gives a plugin."""
    run = tmp_path_factory.mktemp("trust") / "run"
    flags = "--variant mlp --pattern uniform --steps 1".split()
    run_job(["--data", str(corpus), *SMALL, *flags, "--save", str(run)])
    return run


@pytest.fixture
def foreign(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Somebody's run and the plugin that it names, which has not run in this process."""
    number = next(_number)
    plugin = tmp_path / f"foreign{number}.py"
    plugin.write_text(CODE.format(number=number))
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = json.loads((run / "config.json").read_text())
    config["flags"]["model"] |= {"plugin": [str(plugin)], "variant": f"foreign{number}"}
    config["model"]["layer_variants"] = [f"foreign{number}"] * len(config["model"]["layer_variants"])
    for folder in (run, *(run / "checkpoints").iterdir()):
        (folder / "config.json").write_text(json.dumps(config))
    _seal_again(run)
    return run, plugin


def _seal_again(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        progress = read_manifest(folder).progress
        (folder / MANIFEST).unlink()
        write_manifest(folder, progress)


def ran(plugin: Path) -> bool:
    return plugin.with_suffix(".ran").exists()


def resume(run: Path, *flags: str) -> None:
    parse_training_flags(["--save", str(run), "--resume", *flags])


def begin_like(run: Path, *flags: str) -> None:
    parse_training_flags(["--config", str(run / "config.json"), *flags])


def exporting(run: Path, *flags: str) -> None:
    export.main([str(run), str(run.parent / "out"), *flags])


def generating(run: Path, *flags: str) -> None:
    generate.main([str(run), "--prompt", "a", "--max-new-tokens", "1", *flags])


def analyzing(run: Path, *flags: str) -> None:
    analyze.main([str(run), "--out", str(run.parent / "figures"), "--sequences", "1", "--seq-len", "8", *flags])


def evaluating(run: Path, *flags: str) -> None:
    arguments = evaluate.parse(evaluate.Arguments, [str(run), *flags])
    evaluate._open(arguments, [])


WAYS = [resume, begin_like, exporting, generating, analyzing, evaluating]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_runs_unasked(way: Callable[..., None], foreign: tuple[Path, Path]) -> None:
    run, plugin = foreign
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=f"was trained with {plugin}, whose code would run here"):
        way(run)
    assert not ran(plugin) and not (run.parent / "out").exists() and sorted(run.rglob("*")) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flag", ["--trust-plugins", "--plugin"])
def test_what_was_asked_for_runs(
    way: Callable[..., None], flag: str, foreign: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, plugin = foreign
    way(run, *([flag, str(plugin)] if flag == "--plugin" else [flag]))
    assert ran(plugin)
    told = f"note: {plugin} is run, which {run}" in capsys.readouterr().err
    assert told == (flag == "--trust-plugins")


def test_a_copy_of_code_that_has_run_needs_no_word(foreign: tuple[Path, Path]) -> None:
    run, plugin = foreign
    resume(run, "--plugin", str(plugin))
    plugin.with_suffix(".ran").unlink()
    resume(run)
    assert open_model(run).checkpoint is not None
    assert not ran(plugin)


def test_changed_code_is_told(trained: Path, foreign: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, plugin = foreign
    variant = plugin.stem
    config = json.loads((run / "config.json").read_text()) | {"plugin_code": {variant: "0" * 16}}
    for folder in (run / "checkpoints").iterdir():
        (folder / "config.json").write_text(json.dumps(config))
    _seal_again(run)
    _ = open_checkpoint(run).with_plugins([plugin]).model_config
    assert f"the code of variant {variant!r} is not what" in capsys.readouterr().err


def test_a_run_says_which_code_it_was_trained_with(
    small: list[str], foreign: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plugin = foreign
    run = tmp_path / "own"
    run_job(
        [
            *small,
            "--plugin",
            str(plugin),
            "--variant",
            plugin.stem,
            "--pattern",
            "uniform",
            "--steps",
            "1",
            "--save",
            str(run),
        ]
    )
    assert list(open_checkpoint(run).config.plugin_code) == [plugin.stem]
    err = capsys.readouterr().err
    assert f"--plugin {plugin}" in next(line for line in err.splitlines() if line.startswith("export: "))
    _ = open_checkpoint(run).model_config
    assert "is not what" not in capsys.readouterr().err
