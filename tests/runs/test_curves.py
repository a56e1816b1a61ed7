"""Curves: smoothed, over seeds, in a terminal."""

import io
import math

import pytest
from rich.console import Console

from deconattn.errors import UserError
from deconattn.runs.curves import Curve, Panel, binned, chosen_metrics, panels_of_groups, panels_of_runs, smoothed
from deconattn.runs.differences import groups_of
from deconattn.runs.run import read_run, read_runs
from deconattn.runs.terminal import drawing
from deconattn.statistics import mean_interval
from tests.runs.conftest import TOKENS_A_STEP, Maker, step_row


def test_smoothing_is_the_weighted_mean_of_what_was_before() -> None:
    values, weight = [4.0, 1.0, 7.0, 2.0], 0.75
    expected = []
    for end in range(1, 5):
        weights = [weight ** (end - 1 - place) for place in range(end)]
        expected.append(sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights))
    assert smoothed(values, weight) == pytest.approx(expected)
    assert smoothed([0.6] * 9, 0.9) == [0.6] * 9


def test_what_is_drawn_unasked_and_what_cannot_be(made: Maker) -> None:
    rows = [
        step_row(1, 2.0, skipped_steps=0, odd=1.0),
        {"step": 1, "val_loss": 3.0},
        {"step": 1, "eval/ARC-E": 0.5, "eval/ARC-E stderr": 0.1},
    ]
    run = read_run(made("run", rows))
    assert chosen_metrics([run], ()) == ["loss", "val_loss", "grad_norm", "eval/ARC-E"]
    assert chosen_metrics([run], ("odd", "loss", "odd")) == ["odd", "loss"]
    with pytest.raises(UserError, match="--metric los: no run has it; there are loss, grad_norm, skip"):
        chosen_metrics([run], ("los",))
    with pytest.raises(UserError, match="no metrics yet: let it train"):
        chosen_metrics([read_run(made("empty", []))], ())


def test_what_cannot_be_drawn_is_counted(made: Maker) -> None:
    rows = [step_row(1, "nan"), step_row(2, 2.0), step_row(3, -1.0), step_row(4, 1.0)]
    found = [read_run(made("run", rows)), read_run(made("none", [{"step": 1, "val_loss": 1.0}]))]
    [panel] = panels_of_runs(found, ["loss"], "step", 0.5, True)
    assert panel.left_out == 2 and panel.without == ("none",)
    [curve] = panel.curves
    assert curve.raw == [(2, 2.0), (4, 1.0)] and curve.points == [(2, 2.0), (4, pytest.approx(4 / 3))]


def test_learning_rates_and_validations_are_not_smoothed(made: Maker) -> None:
    rows = [step_row(step, 2.0, learning_rate=0.1 * step) for step in (1, 2)]
    rows += [{"step": step, "val_loss": float(step)} for step in (1, 2)]
    run = read_run(made("run", rows))
    for panel in panels_of_runs([run], ["learning_rate", "val_loss"], "step", 0.9, False):
        assert panel.curves[0].raw == [] and panel.curves[0].points == [(s, v) for s, v in run.values(panel.metric)]


def test_seeds_have_a_mean_and_a_band(made: Maker) -> None:
    losses = {1: [3.0, 2.0], 2: [3.5, 2.25], 3: [2.5, "nan"]}
    folders = [
        made(f"s{seed}", [step_row(step, loss) for step, loss in enumerate(values, 1)], "--seed", str(seed))
        for seed, values in losses.items()
    ]
    groups, _ = groups_of(read_runs(folders))
    [panel] = panels_of_groups(groups, ["loss"], "tokens")
    interval = mean_interval([3.0, 3.5, 2.5])
    assert panel.curves[0].points == [(TOKENS_A_STEP, 3.0)] and panel.left_out == 1
    assert panel.curves[0].band == [(TOKENS_A_STEP, interval.low, interval.high)]


def test_bins_keep_ends_and_order() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    found = binned(points, 10)
    assert len(found) == 10 and found[0] == (49.5, 0.5) and found[-1] == (949.5, 0.5)
    assert binned(points[:10], 10) == points[:10]


def panel_of(*lines: list[tuple[float, float]], metric: str = "loss") -> Panel:
    curves = [Curve(f"line {n}", "mlp", n, points, [], [], False) for n, points in enumerate(lines)]
    return Panel(metric, metric, "steps", curves, False)


def drawn(panels: list[Panel], width: int = 60, height: int = 24, colours: bool = False, screen: bool = False) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(
        file=file, width=width, height=height, force_terminal=colours, color_system="256" if colours else None
    )
    console.print(drawing(panels, console, screen))
    file.flush()
    return file.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_a_rising_line_rises_in_the_terminal() -> None:
    text = drawn([panel_of([(float(x), float(x)) for x in range(10)], [(0.0, 9.0), (9.0, 9.0)])])
    rows = [line.split("|", 1)[1] for line in text.splitlines() if "|" in line]
    places = [row.index("a") for row in rows if "a" in row]
    assert len(places) > 8 and places == sorted(places, reverse=True)
    assert sum("b" in row for row in rows) == 1 and "a line 0" in text and "b line 1" in text


def test_one_line_or_colours_are_braille() -> None:
    one = drawn([panel_of([(0.0, 0.0), (9.0, 1.0)])])
    assert any("\u2800" < letter <= "\u28ff" for letter in one) and "\x1b" not in one
    assert "\x1b[" in drawn([panel_of([(0.0, 0.0)], [(1.0, 1.0)])], colours=True)


def test_a_screen_holds_what_fits_it() -> None:
    panels = [panel_of([(0.0, 0.0), (9.0, 1.0)], metric=f"metric{n}") for n in range(5)]
    text = drawn(panels, height=24, screen=True)
    assert len(text.rstrip("\n").splitlines()) <= 24
    assert "not on this screen: metric2, metric3, metric4 (--metric)" in text
    whole = drawn(panels, width=260, height=50, screen=True)
    assert "not on this screen" not in whole


def test_a_flat_line_and_a_point_are_drawn() -> None:
    assert math.isfinite(len(drawn([panel_of([(1.0, 0.0)])]))) and "nothing to draw yet" in drawn([panel_of()])
