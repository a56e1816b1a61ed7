"""Pictures show the numbers that lie beside them."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from deconattn.analysis import figures, findings
from deconattn.analysis.collect import LayerFindings
from deconattn.analysis.findings import ModelFindings, Scale, by_run, newest
from deconattn.analysis.indicators import NAMES, define
from deconattn.analysis.pre_softmax import ActivationSums
from deconattn.pages.palette import COLOURS, PLUGIN_COLOUR, variant_colour

LENGTH = 12


def layer(variant: str, seed: int) -> LayerFindings:
    """Of three heads, drawn at random; `mlp` mixes nothing."""
    if variant == "mlp":
        return LayerFindings(variant, None, None, None)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, LENGTH, LENGTH, generator=generator, dtype=torch.double) * (1 + seed)
    whole = (scores.exp() * torch.ones(LENGTH, LENGTH).tril()).double()
    whole /= whole.sum(dim=-1, keepdim=True)
    sums = ActivationSums()
    sums.add(scores)
    return LayerFindings(variant, define(whole), sums.distribution(), whole)


def model(label: str, *variants: str, run: str | None = None, step: int | None = None, seed: int = 0) -> ModelFindings:
    layers = [layer(variant, seed + number) for number, variant in enumerate(variants)]
    return ModelFindings(label, f"/{label}", run, step, layers)


MODELS = [
    model("plain", "standard", "standard", "standard"),
    model("hybrid", "rndemb", "mlp", "standard", seed=3),
    model("other", "rndemb", "rndemb", seed=6),
]
LOOKS = figures.looks_of({one.label: one.variants for one in MODELS})


def means_of(one: ModelFindings, number: int) -> dict[str, float] | None:
    """Worked out from the tensors, not from what is tested."""
    found = one.layers[number].indicators if number < len(one.layers) else None
    return None if found is None else {name: float(tensor.mean()) for name, tensor in found.by_name().items()}


def drawn_lines(figure: Figure) -> list[dict[str, Sequence[float]]]:
    """Of each panel the lines by label."""
    return [{str(line.get_label()): line.get_ydata() for line in axes.get_lines()} for axes in figure.axes]


def test_one_colour_a_variant_and_a_dash_for_each_that_shares_it():
    colours = {label: look["color"] for label, look in LOOKS.items()}
    assert colours == {"plain": COLOURS["standard"], "hybrid": PLUGIN_COLOUR, "other": COLOURS["rndemb"]}
    looks = figures.looks_of({"a": ["rndemb", "standard"], "b": ["rndemb"], "c": ["of a plugin"]})
    assert [look["color"] for look in looks.values()] == [
        COLOURS["rndemb"],
        COLOURS["rndemb"],
        variant_colour("of a plugin"),
    ]
    assert looks["a"]["linestyle"] != looks["b"]["linestyle"]


def test_radar_of_each_layer():
    compared = [means for one in MODELS for number in range(3) if (means := means_of(one, number))]
    panels = drawn_lines(figures.layer_radars(findings.layer_radar_rows(MODELS, Scale(MODELS)), 3, LOOKS))
    assert [set(panel) for panel in panels] == [{"plain", "hybrid", "other"}, {"plain", "other"}, {"plain", "hybrid"}]
    for number, panel in enumerate(panels):
        for one in MODELS:
            means = means_of(one, number)
            if means is None:
                continue
            expected = []
            for name in NAMES[:3]:
                low, high = (pick(each[name] for each in compared) for pick in (min, max))
                expected.append((means[name] - low) / (high - low))
            expected += [means["sink"], *(2 * means[name] for name in NAMES[4:])]
            assert panel[one.label] == pytest.approx([*expected, expected[0]])
    for place in range(3):  # somebody is at either end
        radii = [line[place] for panel in panels for line in panel.values()]
        assert (min(radii), max(radii)) == (0, 1)


def test_radar_of_each_model_is_the_mean_of_its_layers():
    scale = Scale(MODELS)
    (panel,) = drawn_lines(figures.model_radar(findings.model_radar_rows(MODELS, scale), LOOKS))
    layers = findings.layer_radar_rows(MODELS, scale)
    for one in MODELS:
        for place, name in enumerate(NAMES):
            radii = [row["drawn"] for row in layers if (row["model"], row["indicator"]) == (one.label, name)]
            assert panel[one.label][place] == pytest.approx(sum(radii) / len(radii))


def test_what_is_alike_is_drawn_in_the_middle():
    rows = findings.layer_radar_rows([model("one", "standard")], Scale([model("one", "standard")]))
    assert [row["drawn"] for row in rows[:3]] == [0.5] * 3


def test_models_that_mix_nothing_have_no_lines():
    nothing = [model("nothing", "mlp", "mlp")]
    scale = Scale(nothing)
    assert nothing[0].means is None
    for rows in (
        findings.layer_radar_rows(nothing, scale),
        findings.model_radar_rows(nothing, scale),
        findings.indicator_rows(nothing),
        findings.activation_rows(nothing),
    ):
        assert rows == []


def test_indicators_are_told_head_by_head():
    rows = findings.indicator_rows([MODELS[1]])
    assert {row["layer"] for row in rows} == {1, 3}
    assert len(rows) == 2 * (7 * 3 + 1)
    found = {(row["layer"], row["indicator"], row["head"]): row["value"] for row in rows}
    first, last = MODELS[1].layers[0].indicators, MODELS[1].layers[2].indicators
    assert found[1, "entropy", 2] == float(first.entropy[1])
    assert found[3, "local focus 3", 3] == float(last.local[2, 3])
    assert found[3, "head diversity", None] == float(last.diversity)


def test_activation_bands():
    rows = findings.activation_rows(MODELS)
    figure = figures.activation_bands(rows, 3)
    assert [axes.get_title() for axes in figure.axes] == ["plain", "hybrid", "other"]
    for axes, one in zip(figure.axes, MODELS, strict=True):
        found = [(number, each) for number, each in enumerate(one.layers, start=1) if each.activations is not None]
        bars = [(round(bar.get_x() + 0.4, 6), bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches]
        expected = []
        for number, each in found:
            spread = each.activations
            expected.append((number, spread.minimum, spread.maximum))
            expected += [(number, spread.quantile(low), spread.quantile(1 - low)) for low in (0.01, 0.25)]
        assert np.array(bars) == pytest.approx(np.array(expected))
        medians = [collection.get_segments()[0][0][1] for collection in axes.collections]
        assert medians == pytest.approx([each.activations.quantile(0.5) for _, each in found])
        colours = [to_hex(bar.get_facecolor()) for bar in axes.patches[::3]]
        assert colours == [COLOURS[each.variant].lower() for _, each in found]
        assert axes.get_yscale() == "symlog"


def test_entropy_over_steps():
    steps = [model(f"r/step-{n}", "rndemb", "mlp", "standard", run="r", step=n, seed=n) for n in (20, 3, 100)]
    alone = model("s/step-5", "standard", run="s", step=5)
    everything = [*steps, alone, MODELS[0]]
    assert list(by_run(everything)) == ["r"]
    assert [one.label for one in newest(everything)] == ["r/step-100", "s/step-5", "plain"]
    (axes,) = figures.entropy_over_steps(findings.entropy_rows(by_run(everything))).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"layer 1", "layer 3", "mean"}
    ordered = sorted(steps, key=lambda one: one.step)
    means = {number: [means_of(one, number)["entropy"] for one in ordered] for number in (0, 2)}
    for number in (0, 2):
        line = lines[f"layer {number + 1}"]
        assert list(line.get_xdata()) == [3, 20, 100]
        assert line.get_ydata() == pytest.approx(means[number])
        assert line.get_color() == COLOURS[ordered[0].variants[number]]
    average = [(first + last) / 2 for first, last in zip(means[0], means[2], strict=True)]
    assert lines["mean"].get_ydata() == pytest.approx(average)


def test_heat_maps():
    rows = findings.map_rows(MODELS[1], 3)
    assert len(rows) == 3 * LENGTH * (LENGTH + 1) // 2
    figure = figures.heat_maps(rows, LENGTH)
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(pictures) == 3
    whole = MODELS[1].layers[2].picture.numpy()
    hidden = np.triu(np.ones((LENGTH, LENGTH), dtype=bool), 1)
    for picture, expected in zip(pictures, whole, strict=True):
        drawn = np.ma.filled(picture, math.nan)
        assert np.isnan(drawn[hidden]).all()
        assert drawn[~hidden] == pytest.approx(np.maximum(expected[~hidden], 0.1 / LENGTH))
