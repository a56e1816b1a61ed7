"""Whatever is damaged in a stored model, each command ends in one line or does what it would have done without.

No traceback, no hang, no other model, and nothing written.
"""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deconattn.checkpoint.format import CHECKPOINTS, read_checkpoint
from deconattn.commands import convert, export, generate
from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM
from deconattn.train.resuming import load_buffers, verified_checkpoint
from deconattn.train.run_folder import check_run_folder
from tests.checkpoint.damage import BYTES, Damage, copy, draw, unreadable
from tests.conftest import SMALL
from tests.train.jobs import run_job

SECONDS = 30
NOBODY = 65534
STEP = f"{CHECKPOINTS}/step-2"
Action = Callable[[Path, Path], dict[str, Tensor] | None]
"""Function (stored model, path to write to) of a command -> the weights that it found, if they can be known."""


class Hang(BaseException):
    """A command that waits for what never comes."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture(scope="module")
def run(process_group: None, corpus: Path, folder: Path) -> Path:
    """Steps 1 and 2 of a training, and its corpus beside it."""
    copy(corpus, folder / "corpus")
    flags = ["--data", str(folder / "corpus"), *SMALL, "--steps", "2", "--save-every", "1", "--pattern", "mlp,rndemb"]
    run_job([*flags, "--save", str(folder / "whole")])
    return folder / "whole"


@pytest.fixture(scope="module")
def exports(run: Path, folder: Path) -> dict[str, Path]:
    """The run as an export of ours, and a stock Qwen2."""
    export.main([str(run), str(folder / "ours")])
    run_job(["--data", str(folder / "corpus"), *SMALL, "--steps", "1", "--save", str(folder / "standard")])
    export.main([str(folder / "standard"), str(folder / "stock")])
    return {"ours": folder / "ours", "stock": folder / "stock"}


def resume(model: Path, out: Path) -> dict[str, Tensor] | None:
    """What a resumed training does before it makes its engine."""
    run = model.parents[1] if model.name.startswith("step-") else model
    chosen = ["--resume-from", model.name] if model != run else []
    flags = parse_training_flags(["--save", str(run), "--resume", *chosen])
    check_run_folder(flags)
    checkpoint = verified_checkpoint(flags, run)
    assert checkpoint is not None
    whole = CausalLM(checkpoint.model_config)
    load_buffers(whole, checkpoint)
    for kind in ("exp_avg", "exp_avg_sq"):
        assert dict(checkpoint.tensors(kind)).keys() == whole.canonical_parameters().keys()
    return checkpoint.weights()


def exporting(model: Path, out: Path) -> dict[str, Tensor] | None:
    export.main([str(model), str(out)])
    return load_file(out / "model.safetensors")


def converting(model: Path, out: Path) -> dict[str, Tensor] | None:
    out = out.with_suffix(".safetensors")
    convert.main([str(model), str(out), "--optimizer"])
    return {name: tensor for name, tensor in load_file(out).items() if not name.startswith("optimizer.")}


def generating(model: Path, out: Path) -> dict[str, Tensor] | None:
    generate.main([str(model), "--prompt", "I am", "--max-new-tokens", "2"])
    return None


def evaluating(model: Path, out: Path) -> dict[str, Tensor] | None:
    from deconattn.commands import evaluate

    [stored] = evaluate._open(evaluate.Arguments(models=(model,)), [])
    return dict(stored.load().state_dict())


def beginning(data: str) -> Action:
    def begin(model: Path, out: Path) -> dict[str, Tensor] | None:
        convert.main([str(model), str(out), "--data", data, "--seq-len", "32"])
        return None

    return begin


@contextmanager
def no_hang() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def somebody(damage: Damage) -> Iterator[None]:
    """As a user who is not everybody's master, where that matters."""
    if damage.how is not unreadable or os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """What is in a folder, and when it was changed."""
    states = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def attempt(action: Action, model: Path, root: Path, damage: Damage) -> tuple[str, dict[str, Tensor] | None]:
    """Run a command on damaged files; return what it said, if it refused, and the weights that it found, if not."""
    before = tree(root)
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        out = Path(name, "out")
        try:
            with no_hang(), somebody(damage):
                found = action(model, out)
        except UserError as error:
            said = str(error)
            assert said and "\n" not in said and len(said) < 2000, said
            assert not os.listdir(name), "a refusal leaves nothing"
            return said, None
        finally:
            assert tree(root) == before
    return "", found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def checked_checkpoint(run: Path, folder: Path, cases: int, seed: int) -> None:
    """Damage the newer of two checkpoints: no command takes it for good."""
    files = [str(path.relative_to(run)) for path in (run / STEP).rglob("*") if path.is_file()]
    weights = {number: read_checkpoint(run / f"{CHECKPOINTS}/step-{number}").weights() for number in (1, 2)}
    actions = (resume, exporting, converting, generating, evaluating)
    failures = []
    for number, damage in enumerate(draw(run, files, cases, seed, STEP)):
        action = actions[number % len(actions)]
        copied = copy(run, folder / "copy")
        damage.do(copied)
        step = number // len(actions) % 2 == 0
        try:
            said, found = attempt(action, copied / STEP if step else copied, copied, damage)
            # What only resuming reads, the moments, does no harm to the others.
            spared = action is not resume and damage.how in BYTES and damage.file.endswith(".safetensors")
            spared = spared and not said and (found is None or same(found, weights[2]))
            assert said or spared or not (step and damage.sealed is None), "taken for good"
            if damage.sealed is None and damage.how is not unreadable and found is not None and not spared:
                assert same(found, weights[1]), "not the checkpoint before"
            if damage.sealed and damage.how not in BYTES and found is not None:
                assert same(found, weights[2]) or same(found, weights[1]), "other weights"
        except (Exception, Hang) as error:
            failures.append(f"{action.__name__}, {damage}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def checked_run_config(run: Path, folder: Path, cases: int, seed: int) -> None:
    """Damage the configuration in the run folder: nothing is resumed by it."""
    failures = []
    for damage in draw(run, ["config.json"], cases, seed):
        copied = copy(run, folder / "copy")
        damage.do(copied)
        try:
            attempt(resume, copied, copied, damage)
        except (Exception, Hang) as error:
            failures.append(f"{damage}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def checked_export(export: Path, folder: Path, cases: int, seed: int) -> None:
    """Damage a Hugging Face folder: it has no checksums, so it may pass where nothing can tell."""
    files = [name for name in sorted(os.listdir(export)) if not name.endswith((".md", ".py"))]
    actions = (generating, evaluating, beginning(str(folder / "corpus")))
    failures = []
    for number, damage in enumerate(draw(export, files, cases, seed)):
        action = actions[number % len(actions)]
        copied = copy(export, folder / "copy")
        damage.do(copied)
        try:
            attempt(action, copied, copied, damage)
        except (Exception, Hang) as error:
            failures.append(f"{action.__name__}, {damage}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def test_damaged_checkpoints(run: Path, folder: Path) -> None:
    checked_checkpoint(run, folder, 25, 0)


def test_damaged_run_configurations(run: Path, folder: Path) -> None:
    checked_run_config(run, folder, 30, 0)


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_damaged_exports(kind: str, exports: dict[str, Path], folder: Path) -> None:
    checked_export(exports[kind], folder, 18, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_damaged_checkpoints(seed: int, run: Path, folder: Path) -> None:
    checked_checkpoint(run, folder, 300, seed)
    checked_run_config(run, folder, 200, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_damaged_exports(kind: str, seed: int, exports: dict[str, Path], folder: Path) -> None:
    checked_export(exports[kind], folder, 200, seed)
