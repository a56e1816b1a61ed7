"""A run folder as its files tell of it."""

import shutil
from pathlib import Path

import pytest

from deconattn.errors import UserError
from deconattn.locks import FolderLock
from deconattn.model.flops import count_parameters, training_flops
from deconattn.runs.run import NoRunError, read_run, read_runs, state_of
from tests.runs.conftest import TOKENS_A_STEP, Maker, step_row


def test_places_on_each_axis(made: Maker) -> None:
    rows = [step_row(step, 2.0, **({} if step == 2 else {"tokens_per_second": 64.0})) for step in (2, 4, 6)]
    run = read_run(made("run", [*rows, {"step": 5, "val_loss": 2.5}]))
    assert run.places([2, 5], "step") == [2, 5]
    assert run.places([2, 5], "tokens") == [2 * TOKENS_A_STEP, 5 * TOKENS_A_STEP]
    assert run.config is not None
    one = training_flops(run.config.model, 4, 32)
    assert run.places([2, 5], "flops") == [2 * one, 5 * one]
    assert run.places([2, 4, 5], "time") == pytest.approx([4 / 3600, 8 / 3600, 10 / 3600])
    assert run.parameters == count_parameters(run.config.model).total


def test_tokens_and_flops_follow_the_phases(made: Maker) -> None:
    rows = [step_row(1, 2.0), {"step": 4, "val_loss": 2.0}]
    run = read_run(made("run", rows, "--phase", "2", "seq_len=64"))
    assert run.places([1, 4], "tokens") == [128, 2 * 128 + 2 * 256]
    assert run.config is not None
    short, long = (training_flops(run.config.model, 4, length) for length in (32, 64))
    assert run.places([1, 2, 4], "flops") == [short, 2 * short, 2 * short + 2 * long]


def test_an_axis_that_is_not_known(made: Maker) -> None:
    folder = made("run", [step_row(1, 2.0)])
    with pytest.raises(UserError, match="--x time: .* has no tokens_per_second yet: give --x step"):
        read_run(folder).places([1], "time")
    (folder / "config.json").write_text("{")
    run = read_run(folder)
    assert run.config is None and "is no run's configuration" in run.fault
    with pytest.raises(UserError, match=r"--x tokens: .*; give --x step"):
        run.places([1], "tokens")


def test_a_variant_of_a_plugin_is_not_counted(made: Maker) -> None:
    folder = made("run", [step_row(1, 2.0)])
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"layer_variants": ["standard"', '"layer_variants": ["theirs"'))
    run = read_run(folder)
    assert run.foreign_variants == ["theirs"] and run.parameters is None
    with pytest.raises(UserError, match="--x flops: .* has layers of 'theirs', a plugin's: give --x tokens"):
        run.places([1], "flops")


def test_no_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "config.json"):
        with pytest.raises(NoRunError, match="is no run folder"):
            read_run(folder)


def test_names_tell_runs_apart(made: Maker, tmp_path: Path) -> None:
    folders = [made(name, [step_row(1, 2.0)]) for name in ("one/run", "two/run", "two/other")]
    assert [run.name for run in read_runs(folders)] == ["one/run", "two/run", "two/other"]
    assert [run.name for run in read_runs(folders[1:])] == ["run", "other"]
    (tmp_path / "link").symlink_to(folders[0])
    with pytest.raises(UserError, match="link is named twice"):
        read_runs([folders[0], tmp_path / "link"])


def test_states(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert state_of(read_run(run)).told == "stopped at step 5 of 6"
    lock = FolderLock(run, "training")
    assert state_of(read_run(run)).told == "training, step 5 of 6"
    lock.release()
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"total_steps": 6', '"total_steps": 5'))
    assert state_of(read_run(run)).word == "finished"
    (run / "config.json").write_text(config)
    (run / "checkpoints/step-5/checkpoint.json").unlink()
    assert state_of(read_run(run)).told == "broken: no checkpoint is whole"
    shutil.rmtree(run / "checkpoints")
    assert state_of(read_run(run)).told == "stopped before its first checkpoint, at step 5 of 6"
    (run / "config.json").unlink()
    assert state_of(read_run(run)).word == "broken"
