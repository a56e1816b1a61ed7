"""Step times of runs beside their prediction."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.machine import RESULTS
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.cost.cluster import Cluster
from deconattn.cost.measured import MeasuredRun, as_fast_as, predicted_seconds, read_measured
from deconattn.cost.step_time import step_time
from deconattn.errors import UserError
from deconattn.train.run_folder import resolved_config

H100 = Cluster.of("h100", 8, None, 5)


def run_folder(folder: Path, ranks: int, rates: list[float], device: str = "x86_64", words: str = "") -> Path:
    flags = parse_training_flags(f"--size 70m --global-batch-size 64 --save {folder} {words}".split())
    config = resolved_config(flags, model_config(flags.model, 50277, 2048), [])
    config["environment"] |= {"world_size": str(ranks), "device": device}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"step": step, "tokens_per_second": rate} for step, rate in enumerate(rates)]
    lines = [json.dumps(row) for row in [{"step": 0, "loss": 3.0}, *rows]]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "tok']))
    return folder


def test_the_median_of_a_run_is_its_time(tmp_path: Path):
    run = read_measured(run_folder(tmp_path / "a", 1, [100, 50, 200]))
    assert run.seconds == 64 * 2048 / 100
    assert not run.on_gpus


def test_what_one_cpu_rank_computes_two_share_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    one = read_measured(run_folder(tmp_path / "a", 1, [100]))
    two = read_measured(run_folder(tmp_path / "b", 2, [100]))
    assert predicted_seconds(one, one, H100) == pytest.approx(one.seconds)
    assert predicted_seconds(two, one, H100) == pytest.approx(one.seconds, rel=0.05)
    stages = read_measured(run_folder(tmp_path / "c", 2, [100], words="--pp 2"))
    assert predicted_seconds(stages, one, H100) > 1.05 * one.seconds  # of two cores one stands still at times


def test_a_run_on_a_gpu_makes_the_plan_as_fast(tmp_path: Path):
    run = read_measured(run_folder(tmp_path / "a", 8, [1e5], "NVIDIA H100 80GB HBM3", "--precision bf16"))
    assert run.on_gpus
    assert step_time(run.job, as_fast_as(H100, run)).compute > 0
    assert as_fast_as(H100, run).speed < 1
    a100 = Cluster.of("a100", 8, None, 5)
    assert as_fast_as(a100, run) == a100  # another GPU
    slower = replace(run, seconds=2 * run.seconds)
    assert predicted_seconds(slower, run, H100) < slower.seconds


def test_other_variants_are_predicted_from_standard_within_a_quarter():
    """Measured on two cores: 70m in fp32, each variant in turn."""
    found = json.loads((RESULTS / "train_cpu-70m-fp32.json").read_text(encoding="utf-8"))
    options = found["options"]
    tokens = options["batch_size"] * options["seq_len"]
    runs = {}
    for variant in options["variants"]:
        words = f"--size 70m --variant {variant} --micro-batch-size {options['batch_size']} --precision fp32"
        flags = parse_training_flags([*words.split(), "--global-batch-size", str(options["batch_size"])])
        seconds = tokens / found["summary"][variant]["tokens_per_second"]
        model = model_config(flags.model, options["vocab_size"], options["seq_len"])
        runs[variant] = MeasuredRun(Path(variant), flags, model, 1, "x86_64", seconds)
    for variant, run in runs.items():
        assert predicted_seconds(run, runs["standard"], H100) == pytest.approx(run.seconds, rel=0.25), variant


@pytest.mark.parametrize(("missing", "told"), [("config.json", "holds no run"), ("metrics.jsonl", "holds no run")])
def test_no_run_is_one_line(tmp_path: Path, missing: str, told: str):
    folder = run_folder(tmp_path / "a", 1, [100])
    (folder / missing).unlink()
    with pytest.raises(UserError, match=told):
        read_measured(folder)


def test_a_run_without_times_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="let it run for a few steps"):
        read_measured(run_folder(tmp_path / "a", 1, []))
