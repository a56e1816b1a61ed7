"""The command compare."""

import statistics
from pathlib import Path

import pytest

from deconattn.cli import run
from deconattn.commands.compare import main
from deconattn.errors import UserError
from deconattn.runs.comparison import compare
from deconattn.runs.run import read_runs
from deconattn.statistics import family_level, mean_interval, paired_difference
from tests.runs.conftest import Maker, step_row

LOSSES = {"mlp": {1: 3.0, 2: 3.25, 3: 2.875}, "standard": {1: 2.5, 2: 2.625, 3: 2.375}, "rndemb": {1: 2.75, 2: 2.5}}
"""Validation loss by variant and seed."""


def rows(value: float, steps: int = 40) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        step_row(step, value + 1 / step, tokens_per_second=100.0 + step, memory_gib=0.5) for step in range(1, steps + 1)
    ]
    found += [{"step": 20, "val_loss": value - 0.5}, {"step": 40, "val_loss": value}, {"step": 40, "eval/ARC-E": 0.25}]
    return found


@pytest.fixture
def folders(made: Maker) -> list[Path]:
    return [
        made(f"{variant}-{seed}", rows(value), "--variant", variant, "--seed", str(seed), "--steps", "40")
        for variant, of in LOSSES.items()
        for seed, value in of.items()
    ]


def test_means_and_paired_differences(folders: list[Path]) -> None:
    found = compare(read_runs(folders))
    assert [group.label for group in found.groups] == ["mlp, uniform", "standard", "rndemb, uniform"]
    results = {column.title: column.cells for column in found.results}
    for place, of in enumerate(LOSSES.values()):
        interval = mean_interval(list(of.values()))
        assert results["validation loss"][place].text == f"{interval.mean:.4f} ± {interval.half:.4f}"
        assert results["best validation loss"][place].sort == pytest.approx(interval.mean - 0.5)
        late = interval.mean + statistics.fmean([1 / 39, 1 / 40])
        assert results["training loss"][place].sort == pytest.approx(late), "the last twentieth of 40 steps"
    assert results["ARC-E"][0].text == "0.2500 ± 0.0000"
    assert results["tokens a second"][1].sort == 120.5
    assert found.level == family_level(2)
    differences = {column.title: column.cells for column in found.differences}
    assert set(differences) == {"training loss", "validation loss", "best validation loss", "ARC-E"}
    for place, variant in ((1, "standard"), (2, "rndemb")):
        paired = paired_difference(LOSSES[variant], LOSSES["mlp"], found.level)
        assert paired is not None
        star = "*" if paired.above(0) or paired.below(0) else ""
        assert differences["validation loss"][place].text == f"{paired.mean:+.4f} ± {paired.half:.4f}{star}"
    assert differences["validation loss"][1].text.endswith("*")
    assert not differences["validation loss"][2].text.endswith("*"), "two seeds are too few"
    facts = {column.title: [cell.text for cell in column.cells] for column in found.facts}
    assert facts["seeds"] == ["3: 1, 2, 3", "3: 1, 2, 3", "2: 1, 2"] and facts["tokens"] == ["5,120"] * 3


def test_one_group_of_one_run_needs_no_interval(folders: list[Path]) -> None:
    found = compare(read_runs(folders[:1]))
    assert found.settings == [] and found.differences == []
    assert {column.title: column.cells[0].text for column in found.results}["validation loss"] == "3.0000"


def test_a_run_that_is_behind_is_in_no_mean(folders: list[Path], made: Maker) -> None:
    late = made("late", rows(9.0, steps=30)[:30], "--variant", "mlp", "--seed", "4", "--steps", "40")
    found = compare(read_runs([*folders[:3], late]))
    assert found.notes == ["late is at step 30, others of its group at 40: it is in no mean."]
    assert len(found.runs) == 4 and [cell.sort for cell in found.facts[0].cells] == [3]


def test_no_seed_in_common_is_told(folders: list[Path]) -> None:
    found = compare(read_runs([folders[0], folders[4]]))
    assert found.notes == ["standard has no seed of mlp, uniform: there is no paired difference."]
    assert found.differences == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}", "--out", "a.txt"], "--out a.txt: give a name that ends in .html or .md"),
        (["{run}", "--trust-plugins"], "--trust-plugins is for the texts of --prompt: give a prompt, or leave it out"),
        (["{run}", "--temperature", "-1", "--prompt", "a"], "--temperature -1: give 0"),
        (["{run}", "{empty}"], "{empty} has no metrics yet: leave it out"),
        (["{run}", "{broken}"], "{broken}/config.json is no run's configuration"),
    ],
)
def test_errors_are_one_line(
    words: list[str], says: str, made: Maker, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    named = {name: str(made(name, rows(2.0) if name != "empty" else [])) for name in ("run", "empty", "broken")}
    Path(named["broken"], "config.json").write_text("{")
    with pytest.raises(SystemExit) as leaving:
        run(lambda: main([word.format(**named) for word in words]))
    assert leaving.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says.format(**named)}")
    assert not list(tmp_path.glob("a.*"))


def test_the_page_and_the_markdown(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder) for folder in folders]
    main([*words, "--out", str(tmp_path / "page.html")])
    assert "validation loss" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "http" not in page and "fill-opacity" in page and "mlp-3" in page
    main([*words, "--out", str(tmp_path / "table.md")])
    interval = mean_interval(list(LOSSES["standard"].values()))
    for text in (page, (tmp_path / "table.md").read_text()):
        assert f"{interval.mean:.4f} ± {interval.half:.4f}" in text


def test_names_are_escaped(made: Maker, tmp_path: Path) -> None:
    odd = [made(name, rows(2.0), "--seed", str(seed)) for seed, name in enumerate(("<b>a|b", "plain"))]
    for ending in ("html", "md"):
        main([*map(str, odd), "--out", str(tmp_path / f"out.{ending}")])
        assert "<b>a" not in (tmp_path / f"out.{ending}").read_text()
    assert "a\\|b" in (tmp_path / "out.md").read_text()


def test_a_trained_run_writes(trained: Path, made: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plot, list and compare what a training has left; one run cannot write."""
    from deconattn.commands.plot import main as plot
    from deconattn.commands.runs import main as list_runs

    plot([str(trained), "--x", "flops", "--out", str(tmp_path / "curves.html")])
    list_runs([str(trained.parent)])
    assert "stopped at step 5 of 6" in capsys.readouterr().out
    without = made("without", rows(2.0))
    out = tmp_path / "page.html"
    main([str(trained), str(without), "--prompt", "The king", "--max-new-tokens", "8", "--out", str(out)])
    assert "note: without writes nothing: " in capsys.readouterr().err
    page = out.read_text()
    assert "<q>The king</q>" in page and "(nothing: " in page and "<h3>trained</h3>" in page
    with pytest.raises(UserError, match="has no metrics yet"):
        main([str(made("new", []))])
