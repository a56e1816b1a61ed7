"""Several seeds, and a rate for each model from a sweep: planned, carried on, measured and shown."""

import dataclasses
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from deconattn.commands import reproduce as command
from deconattn.errors import UserError
from deconattn.reproduction.cells import cell_of, difference_of
from deconattn.reproduction.estimate import Estimate, shards_of
from deconattn.reproduction.folder import ReproductionFolder, Stored, check_same, load_plan, save_plan, with_seeds
from deconattn.reproduction.gather import gather
from deconattn.reproduction.jobs import choose_rate, command_of
from deconattn.reproduction.pages import html, markdown
from deconattn.reproduction.plans import Request, Run, make_plan, runs_of
from deconattn.reproduction.scaling import power_law
from deconattn.statistics import family_level, mean_interval
from tests.reproduction.conftest import data_of, reproduce, start, tables_of
from tests.reproduction.test_pages import Page
from tests.reproduction.test_runner import trainings

RATES = (0.001, 0.004)
SWEPT = "--table 1 --size tiny --variants mlp --patterns uniform --no-analysis --seeds 2 --lr-sweep 0.001 0.004".split()
REQUEST = Request(table=("1",), size=("tiny",), variants=("mlp",), patterns=("uniform",), seeds=3)
SIZES = {"tiny": 10**6, "70m": 70 * 10**6, "160m": 160 * 10**6}


def begun(out: Path, request: Request) -> tuple[ReproductionFolder, Stored]:
    """A folder with a plan, whose costs are made up."""
    estimates = {run.name: Estimate(SIZES[run.size], 10**9, 8192, 256) for run in runs_of(make_plan(request))}
    folder, stored = ReproductionFolder(out), Stored(request, estimates)
    save_plan(folder, stored)
    return folder, stored


def finish(folder: ReproductionFolder, stored: Stored, loss: Any, seeds: tuple[int, ...]) -> None:
    """Record all jobs of some seeds as done, with losses by run."""
    for job in stored.plan.jobs:
        if job.run.seed not in seeds or job.kind == "analyze":
            continue
        if job.kind == "choose":
            outcome = choose_rate(folder, stored, job.run)
        elif job.kind == "train":
            measured = {"seconds": 1.0, "tokens_per_second": 1.0, "memory_gib": 1.0}
            outcome = {"validation_loss": loss(job.run), "environment": {"device": "cpu", "world_size": 1}} | measured
        else:
            value = loss(job.run)
            scores = {
                "Wiki ppl": {"value": math.exp(value + 2 * (job.kind == "skip")), "stderr": None},
                "Avg": {"value": 0.4 + 0.01 / value, "stderr": 0.02},
            }
            chance = {
                "random guess": {"Wiki ppl": {"value": 1e9, "stderr": None}, "Avg": {"value": 0.39, "stderr": None}}
            }
            outcome = {"scores": scores, "chance": chance, "contexts": {}}
        folder.record(job, {"command": "c", "host": "h", "seconds": 1.0, "outcome": outcome})


def loss_of(run: Run) -> float:
    return 4.0 + (run.variant == "mlp") + 0.01 * (run.seed - 1234) + abs(math.log((run.lr or 0.004) / 0.004))


def test_names_do_not_depend_on_how_many_seeds_there_are() -> None:
    plan = make_plan(REQUEST)
    assert [run.name for run in plan.runs[:2]] == [
        run.name for run in make_plan(dataclasses.replace(REQUEST, seeds=1)).runs
    ]
    assert [run.name for run in plan.runs[2:4]] == ["tiny-standard-uniform-seed1235", "tiny-mlp-uniform-seed1235"]
    assert [run.seed for run in plan.runs] == [1234, 1234, 1235, 1235, 1236, 1236]  # a first table comes first
    assert plan.runs[4].first == plan.runs[0] == plan.tables["1"][0].run


def test_a_sweep_is_trials_a_choice_and_what_follows_from_it(tmp_path: Path) -> None:
    request = dataclasses.replace(REQUEST, lr_sweep=RATES, analysis=False)
    folder, stored = begun(tmp_path, request)
    mlp = [job for job in stored.plan.jobs if job.run.variant == "mlp"]
    assert [job.name for job in mlp[:4]] == [
        "tiny-mlp-uniform-lr0.001 train", "tiny-mlp-uniform-lr0.004 train", "tiny-mlp-uniform choose",
        "tiny-mlp-uniform evaluate",
    ]  # fmt: skip
    low, high, choose, evaluate, later, later_evaluate, *_ = mlp
    assert folder.needs(low) is None and folder.needs(evaluate) == folder.needs(later) == choose
    assert folder.needs(later_evaluate) == later
    folder.record_failure(high, {"reason": "exit code 1"})
    folder.record(low, {"outcome": {"validation_loss": 3.0}})
    assert not command.given_up(folder, high)
    folder.record(choose, {"outcome": choose_rate(folder, stored, choose.run)})
    assert folder.rate(later.run) == 0.001 and folder.needs(evaluate) == low
    assert command.given_up(folder, high) and not command.given_up(folder, low)
    words = command_of(later, folder, stored)
    assert words[words.index("--lr") + 1] == "0.001" and words[-1].endswith("runs/tiny-mlp-uniform-seed1235")
    assert str(folder.run(low.run)) in command_of(evaluate, folder, stored)
    standard = next(job for job in stored.plan.jobs if job.kind == "choose")
    with pytest.raises(UserError, match="no rate of the sweep has a validation loss"):
        choose_rate(folder, stored, standard.run)
    folder.record_failure(standard, {"reason": "none"})
    others = [job for job in stored.plan.jobs if job.run.variant == "standard" and job.kind in ("train", "evaluate")]
    assert [folder.possible(job) for job in others] == [True, True, *[False] * 5]


def test_a_model_whose_rate_is_swept_stays_in_one_shard(tmp_path: Path) -> None:
    request = dataclasses.replace(REQUEST, lr_sweep=RATES, variants=("mlp", "rndemb"))
    _, stored = begun(tmp_path, request)
    shards = shards_of(stored.plan, stored.estimates, 3)
    models = {run.model: {shards[other] for other in shards if other.model == run.model} for run in shards}
    assert sorted(map(tuple, models.values())) == [(1,), (2,), (3,)]
    plain = Stored(REQUEST, stored.estimates | {run.name: Estimate(1, 1, 1, 1) for run in runs_of(make_plan(REQUEST))})
    assert len(set(shards_of(plain.plan, plain.estimates, 6).values())) == 6


def test_seeds_are_added_and_nothing_else_is(tmp_path: Path) -> None:
    folder, stored = begun(tmp_path, REQUEST)
    more = dataclasses.replace(REQUEST, seeds=5)
    check_same(folder, stored.request, more)
    save_plan(folder, with_seeds(stored, 5))
    loaded = load_plan(folder)
    assert loaded is not None and loaded.request == more and set(loaded.estimates) == {r.name for r in loaded.plan.runs}
    with pytest.raises(UserError, match="begun with --seeds 5 and the flags now say 3"):
        check_same(folder, more, REQUEST)
    with pytest.raises(UserError, match="begun with --lr-sweep"):
        check_same(folder, REQUEST, dataclasses.replace(more, lr_sweep=RATES))
    content = json.loads(folder.plan.read_text())
    del content["request"]["seeds"], content["request"]["lr_sweep"]  # as before there were any
    content["request"]["tokens"] = 1000
    folder.plan.write_text(json.dumps(content))
    older = load_plan(folder)
    assert older is not None and older.request == dataclasses.replace(REQUEST, seeds=1, tokens=(1000,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "--seeds 0: give 1 or more"),
        ({"lr_sweep": (0.1, -1.0)}, "--lr-sweep -1.0: give numbers above zero"),
        ({"lr_sweep": (0.1,)}, "--lr-sweep 0.1 is one rate"),
        ({"lr_sweep": (0.1, 0.1)}, "--lr-sweep 0.1 is given twice"),
        ({"lr_sweep": RATES, "train": "--lr 4e-3"}, "--train --lr: --lr-sweep gives each run its rate"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(dataclasses.replace(REQUEST, **changes))


def test_jobs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stored = begun(tmp_path, REQUEST)
    monkeypatch.setattr(command, "GPU_DEVICES", ())
    monkeypatch.setattr(command, "BYTES_A_JOB", 1)
    monkeypatch.setattr(command.os, "sched_getaffinity", lambda process: set(range(6)))
    assert command.jobs_at_once(stored) == 6
    large = dataclasses.replace(stored, estimates={"a": Estimate(70 * 10**6, 1, 1, 1)})
    assert command.jobs_at_once(large) == 1
    monkeypatch.setattr(command, "GPU_DEVICES", (str(tmp_path),))
    assert command.jobs_at_once(stored) == 1
    monkeypatch.setattr(command, "GPU_DEVICES", ())
    monkeypatch.setattr(command, "BYTES_A_JOB", 10**18)
    assert command.jobs_at_once(stored) == 1


def test_cells_have_the_interval_of_their_scale() -> None:
    def of(title: str, *values: float, error: float | None = None) -> dict[str, Any]:
        return cell_of(title, {seed: {"value": value, "stderr": error} for seed, value in enumerate(values)})

    logs = mean_interval([math.log(x) for x in (10.0, 20.0, 40.0)])
    cell = of("Wiki ppl", 10.0, 20.0, 40.0)
    assert cell["value"] == pytest.approx(20.0) and cell["high"] == pytest.approx(math.exp(logs.high or 0))
    accuracy, other = of("Avg", 0.5, 0.52, error=0.03), of("Avg", 0.4, 0.45, error=0.04)
    assert accuracy["stderr"] == pytest.approx(0.03) and accuracy["seeds"] == {0: 0.5, 1: 0.52}
    assert accuracy["high"] == mean_interval([0.5, 0.52], shared_error=0.03).high
    difference = difference_of("Avg", accuracy, other, 0.99)
    expected = mean_interval([0.1, 0.07], 0.99, shared_error=0.05)
    assert difference is not None and difference["value"] == pytest.approx(0.085)
    assert (difference["low"], difference["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    ratio = difference_of("Wiki ppl", cell, of("Wiki ppl", 5.0, 10.0, 20.0), 0.95)
    assert ratio is not None and (ratio["low"], ratio["value"], ratio["high"]) == pytest.approx((2.0, 2.0, 2.0))
    alone = of("Avg", 0.5, error=0.03)
    assert (alone["value"], alone["stderr"], alone["low"]) == (0.5, 0.03, None)
    assert difference_of("Avg", alone, {}, 0.95) is None and of("Avg")["value"] is None


def test_the_page_has_intervals_differences_and_the_sweep(tmp_path: Path) -> None:
    folder, stored = begun(tmp_path, dataclasses.replace(REQUEST, lr_sweep=(0.001, 0.002, 0.004)))
    finish(folder, stored, loss_of, (1234, 1235))
    data = gather(folder, stored)
    standard, mlp, *_ = data["tables"]["1"]["rows"]
    assert standard["ours"]["validation loss"]["seeds"] == {1234: 4.0, 1235: 4.01}
    assert (mlp["state"], mlp["seeds_done"]) == ("missing", 2)
    found = mlp["differences"]["validation loss"]
    assert found["value"] == pytest.approx(1.0) and found["level"] == family_level(1) and found["seeds"] == 2
    assert [sweep["chosen"] for sweep in data["sweeps"]] == [0.004, 0.004]
    assert [run["trial"] for run in data["runs"].values()].count(True) == 4
    page, text = Page(html(data)), markdown(data)
    cells = [" ".join(cell.split()) for row in page.rows for cell in row]
    assert "4.005 [3.941, 4.069]" in cells and "+1.000 [+1.000, +1.000]" in cells
    for words in ("paired by seed", "with each of 3 seeds", "missing, 2 seeds done", "Learning rates"):
        assert words in page.text and words in text
    assert "At an end of the sweep" in page.text and "0.004 |" in text
    assert r"**+1.000 \[+1.000, +1.000\]**" in text and "| mlp | uniform | 0.0 \\[" in text


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    folder, stored = begun(tmp_path, dataclasses.replace(REQUEST, seeds=1))
    finish(folder, stored, loss_of, (1234,))
    data = gather(folder, stored)
    page = Page(html(data))
    assert "one seed, so there is no interval over seeds" in page.text and "paired by seed" not in page.text
    assert {claim["shows"] for claim in data["claims"]} == {None}
    assert "Not seen in one run" in page.text and "One seed: there is no interval." in page.text


@pytest.mark.parametrize("seeds", [1, 3])
def test_sizes_are_fitted(tmp_path: Path, seeds: int) -> None:
    request = dataclasses.replace(REQUEST, table=("figure4",), size=tuple(SIZES), seeds=seeds)
    folder, stored = begun(tmp_path, request)

    def loss(run: Run) -> float:
        law = 2.0 + 50 * SIZES[run.size] ** -0.3 if run.variant == "standard" else 1e-9 * SIZES[run.size]
        return law + 0.001 * (run.seed - 1234)

    finish(folder, stored, loss, (1234, 1235, 1236))
    data = gather(folder, stored)
    standard, mlp = data["fits"]["figure4"]
    assert standard["alpha"] == pytest.approx(0.3, rel=1e-3) and mlp == {
        "by": "parameters", "at": None, "variant": "mlp", "pattern": "uniform", "why": "no power law with a floor fits",
    }  # fmt: skip
    page = Page(html(data))
    assert "mlp, uniform, over parameters: no fit, no power law with a floor fits." in page.text
    if seeds == 1:
        assert standard["intervals"] is None and "no interval, one seed." in page.text
    else:
        low, high = standard["intervals"]["E"]
        assert 1.99 < low < 2.001 < high < 2.01 and "exponent 0.300 [0.300, 0.300]" in page.text


def test_several_numbers_of_tokens_are_runs_of_their_own_and_fitted(tmp_path: Path) -> None:
    request = dataclasses.replace(REQUEST, tokens=(10**6, 10**7, 10**8), seeds=2)
    estimates = {run.name: Estimate(10**6, 1, run.tokens or 0, 256) for run in runs_of(make_plan(request))}
    folder, stored = ReproductionFolder(tmp_path), Stored(request, estimates)
    finish(folder, stored, lambda run: 2.0 + 50 * (run.tokens or 0) ** -0.3 + (run.variant == "mlp"), (1234, 1235))
    data = gather(folder, stored)
    assert "tiny-mlp-uniform-10000000tokens-seed1235" in data["runs"]
    assert [(fit["by"], fit["at"]) for fit in data["fits"]["1"]] == [("tokens", "tiny")] * 2
    assert [fit["E"] for fit in data["fits"]["1"]] == pytest.approx([2.0, 3.0], rel=1e-3)
    mlp = [row["differences"]["validation loss"] for row in data["tables"]["1"]["rows"] if row.get("variant") == "mlp"]
    assert [found["value"] for found in mlp] == pytest.approx([1.0] * 3) and mlp[0]["level"] == family_level(3)
    assert {claim["models"] for claim in data["claims"]} == {
        f"tiny, {n} tokens" for n in ("1,000,000", "10,000,000", "100,000,000")
    }
    page = Page(html(data))
    assert "Validation loss by tokens, tiny; lines are the fits below." in page.text
    assert "mlp, uniform, tiny, over tokens: exponent 0.300" in page.text


def test_power_laws() -> None:
    sizes = [1e6, 1e7, 1e8, 1e9]
    found = power_law(sizes, [1.7 + 400 * size**-0.34 for size in sizes])
    assert found == pytest.approx((1.7, 400, 0.34), rel=1e-3)
    assert power_law(sizes, [1.0, 2.0, 3.0, 4.0]) is None
    assert power_law(sizes, [4.0, 3.0, 2.0, 1.0]) is None  # it would have no floor


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    code, errors = reproduce(out, arguments=SWEPT)
    assert code == 0, errors
    return out


def test_a_sweep_and_two_seeds_to_their_end(undisturbed: Path) -> None:
    data = data_of(undisturbed)
    assert data["jobs"] == {"done": 12, "all": 12} and data["failed"] == []
    assert set(trainings(undisturbed).values()) == {1} and len(trainings(undisturbed)) == 6
    for sweep in data["sweeps"]:
        best = min(sweep["losses"], key=lambda rate: sweep["losses"][rate])
        assert sweep["chosen"] == float(best)
        name = f"tiny-{sweep['variant']}-uniform"
        assert f"--lr {best}" in data["runs"][f"{name}-seed1235"]["commands"]["train"]
        assert f"runs/{name}-lr{best} " in data["runs"][f"{name}-lr{best}"]["commands"]["evaluate"]
    row = data["tables"]["1"]["rows"][0]
    assert row["ours"]["Avg"]["low"] < row["ours"]["Avg"]["value"] < row["ours"]["Avg"]["high"]


@pytest.mark.slow
def test_ten_kills_change_nothing(undisturbed: Path, tmp_path: Path) -> None:
    moments = random.Random(6)
    for _ in range(10):
        process = start(tmp_path, SWEPT)
        time.sleep(moments.uniform(0.3, 1.2))
        process.kill()
        process.communicate()
    assert reproduce(tmp_path, arguments=SWEPT)[0] == 0
    assert tables_of(tmp_path) == tables_of(undisturbed)
    assert data_of(tmp_path)["sweeps"] == data_of(undisturbed)["sweeps"]
    assert data_of(tmp_path)["curves"] == data_of(undisturbed)["curves"]


@pytest.mark.slow
def test_seeds_are_added_to_what_is_there(tmp_path: Path) -> None:
    flags = "--table 1 --size tiny --variants mlp --patterns uniform --no-analysis".split()
    assert reproduce(tmp_path, arguments=flags)[0] == 0
    first = data_of(tmp_path)["tables"]["1"]["rows"][0]["ours"]["Avg"]
    assert reproduce(tmp_path, "--seeds", "2", "--jobs", "3", arguments=flags)[0] == 0
    assert set(trainings(tmp_path).values()) == {1} and len(trainings(tmp_path)) == 4
    both = data_of(tmp_path)["tables"]["1"]["rows"][0]["ours"]["Avg"]
    assert both["seeds"]["1234"] == first["value"] and first["low"] is None and both["low"] is not None
    code, errors = reproduce(tmp_path, arguments=flags)
    assert code == 2 and "begun with --seeds 2 and the flags now say 1" in errors


@pytest.mark.slow
def test_a_rate_that_fails_is_told_and_not_tried_again(tmp_path: Path, undisturbed: Path) -> None:
    best = f"tiny-mlp-uniform-lr{data_of(undisturbed)['sweeps'][1]['chosen']}"
    assert reproduce(tmp_path, arguments=SWEPT, FAKE_FAILS=f"{best}:train")[0] == 0
    data = data_of(tmp_path)
    assert [failure["run"] for failure in data["failed"]] == [best]
    assert None in data["sweeps"][1]["losses"].values() and "No loss, failed or diverged: mlp" in html(data)
    assert reproduce(tmp_path, "--retry-failed", arguments=SWEPT)[0] == 0
    assert trainings(tmp_path)[best] == 0 and data_of(tmp_path)["tables"] == data["tables"]
