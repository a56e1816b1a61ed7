"""Pictures of long text show the numbers that results.json has."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from deconattn.analysis.losses import PositionLosses
from deconattn.evaluation.pictures import APART, looks, needle_grid, perplexity_by_position, write_picture
from deconattn.evaluation.position import position_numbers
from deconattn.pages.palette import COLOURS


def bins(*values: float, spread: float | None = 0.1) -> dict[str, Any]:
    ends = [(value * (1 - spread), value * (1 + spread)) if spread else (None, None) for value in values]
    octaves = [
        {"first": 2 ** (place + 1), "last": 2 ** (place + 2) - 1, "value": value, "low": low, "high": high}
        for place, (value, (low, high)) in enumerate(zip(values, ends, strict=True))
    ]
    return {"octaves": octaves, "bins": []}


def test_models_are_told_apart() -> None:
    alike = looks({"before": ["standard"], "after": ["standard", "standard"]})
    assert [look["color"] for look in alike.values()] == list(APART[:2])
    assert looks({"one": ["standard"]})["one"]["color"] == COLOURS["standard"]
    others = looks({"one": ["standard"], "other": ["standard", "rndemb"]})
    assert [look["color"] for look in others.values()] == [COLOURS["standard"], COLOURS["rndemb"]]


def test_lines_bands_and_lengths() -> None:
    models = {"before": bins(50, 40, 90), "after": bins(45, 35, 30, spread=None)}
    styles = looks({label: ["standard"] for label in models})
    (axes,) = perplexity_by_position(models, styles, {"before": 8, "after": 64}).axes
    before, after, length = axes.get_lines()
    assert list(before.get_ydata()) == [50, 40, 90] and list(after.get_ydata()) == [45, 35, 30]
    assert list(before.get_xdata()) == pytest.approx([math.sqrt(2 * 3), math.sqrt(4 * 7), math.sqrt(8 * 15)])
    assert list(length.get_xdata()) == [8, 8]  # the text does not go beyond the other's 64
    assert to_hex(length.get_color()) == to_hex(before.get_color()) != to_hex(after.get_color())
    (band,) = axes.collections  # one sequence alone has no interval
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((36, 99))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_octaves_then_their_quarters() -> None:
    losses = PositionLosses(torch.arange(2.0, 151.0).log().expand(3, -1))
    (axes,) = perplexity_by_position({"one": position_numbers(losses)}, looks({"one": ["standard"]}), {}).axes
    (line,) = axes.get_lines()
    octaves = [math.sqrt(first * (2 * first - 1)) for first in (2, 4, 8, 16)]
    edges = [32, 38, 45, 54, 64, 76, 91, 108, 128, 151]
    quarters = [math.sqrt(first * (stop - 1)) for first, stop in pairwise(edges)]
    assert list(line.get_xdata()) == pytest.approx(octaves + quarters)
    assert np.all(np.abs(np.log(np.array(line.get_ydata()) / line.get_xdata())) < 0.05)


def test_the_grid_of_needles(tmp_path: Path) -> None:
    shares = {"one": [0.0, 0.25, 0.5, 0.75, 1.0, 0.1], "other": [0.1] * 6}
    places = [(length, depth) for length in (256, 1024) for depth in (0.0, 50.0, 100.0)]
    models = {
        label: {
            "chance": 0.125,
            "cells": [
                {"length": length, "depth": depth, "accuracy": share}
                for (length, depth), share in zip(places, values, strict=True)
            ],
        }
        for label, values in shares.items()
    }
    figure = needle_grid(models)
    one, other, _ = figure.axes
    assert np.array_equal(one.get_images()[0].get_array(), [[0.0, 0.75], [0.25, 1.0], [0.5, 0.1]])
    assert [text.get_text() for text in one.texts] == ["0", "75", "25", "100", "50", "10"]
    assert [label.get_text() for label in one.get_xticklabels()] == ["256", "1,024"]
    assert [label.get_text() for label in one.get_yticklabels()] == ["0 %", "50 %", "100 %"]
    assert (one.get_title(), other.get_title()) == ("one", "other")
    write_picture(figure, tmp_path / "needle")
    assert "right answers (chance 0.12)" in (tmp_path / "needle.svg").read_text()
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")
