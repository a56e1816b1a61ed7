"""Pictures of mechanisms show the numbers that lie beside them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deconattn.analysis import figures, mechanism_figures, mechanism_rows
from deconattn.analysis.ablation import HEAD, MIXER, Ablations
from deconattn.analysis.agreement import Agreement
from deconattn.analysis.collect import LayerFindings
from deconattn.analysis.findings import ModelFindings
from deconattn.analysis.induction import InductionFindings
from deconattn.analysis.losses import PositionLosses
from deconattn.analysis.report import summary_tables

VARIANTS = ("standard", "mlp", "rndemb")
HEADS, SEQUENCES = 3, 4


def found(label: str, seed: int) -> ModelFindings:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.double)

    layers = [LayerFindings(variant, None, None, None) for variant in VARIANTS]
    scores = [None if variant == "mlp" else draw(SEQUENCES, HEADS, 2) for variant in VARIANTS]
    places = [(layer, None, name) for layer in range(3) for name in MIXER]
    places += [(layer, head, name) for layer in (0, 2) for head in range(HEADS) for name in HEAD]
    return ModelFindings(
        label,
        f"/{label}",
        None,
        None,
        layers,
        InductionFindings(scores, draw(SEQUENCES, 2), 6),
        PositionLosses(3 + draw(SEQUENCES, 63)),
        Ablations(draw(SEQUENCES), {place: draw(SEQUENCES) for place in places}, without_heads=(1,)),
    )


MODELS = [found("one", 1), found("other", 2)]


def heat(figure: Figure, title: str) -> tuple[np.ndarray, int]:
    """The cells of the panel of a title, and how many rows are hatched."""
    (axes,) = (axes for axes in figure.axes if axes.get_title() == title)
    hatched = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    return np.ma.filled(axes.images[0].get_array().astype(float), math.nan), len(hatched)


def test_scores_of_heads() -> None:
    figure = mechanism_figures.induction_heads(mechanism_rows.induction_rows(MODELS))
    for model in MODELS:
        for place, score in enumerate(("induction", "previous token")):
            cells, hatched = heat(figure, f"{model.label}: {score}")
            assert hatched == 1 and np.isnan(cells[1]).all() and cells.shape == (3, HEADS)
            for layer in (0, 2):
                assert cells[layer] == pytest.approx(model.induction.layers[layer][..., place].mean(dim=0).numpy())


def test_loss_over_positions() -> None:
    rows = mechanism_rows.position_rows(MODELS)
    looks = figures.looks_of({model.label: model.variants for model in MODELS})
    (axes,) = mechanism_figures.loss_by_position(rows, looks).axes
    assert len(axes.get_lines()) == len(axes.collections) == 2
    for model, line in zip(MODELS, axes.get_lines(), strict=True):
        losses = model.position.losses.mean(dim=0)
        bins = [row for row in rows if row["model"] == model.label]
        expected = [float(losses[row["first"] - 2 : row["last"] - 1].mean()) for row in bins]
        assert line.get_ydata() == pytest.approx(expected)
        assert all(row["first"] <= place <= row["last"] for row, place in zip(bins, line.get_xdata(), strict=True))


def test_what_is_gained_without_a_mixer() -> None:
    rows = mechanism_rows.ablation_rows(MODELS)
    figure = mechanism_figures.ablated_mixers(rows)
    for model, axes in zip(MODELS, figure.axes, strict=True):
        assert axes.get_title() == model.label
        for name, container in zip(MIXER, axes.containers, strict=True):
            points, _, (bars,) = container
            differences = [model.ablations.found[layer, None, name] - model.ablations.whole for layer in range(3)]
            assert points.get_ydata() == pytest.approx([float(one.mean()) for one in differences])
            # Student's t of four values, three degrees of freedom.
            halves = [3.182446 * float(one.std()) / 2 for one in differences]
            lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
            assert lengths == pytest.approx([2 * half for half in halves], rel=1e-5)


def test_what_is_gained_without_a_head() -> None:
    figure = mechanism_figures.ablated_heads(mechanism_rows.head_ablation_rows(MODELS))
    for model in MODELS:
        cells, hatched = heat(figure, model.label)
        assert hatched == 1 and np.isnan(cells[1]).all()
        for layer in (0, 2):
            expected = [
                float((model.ablations.found[layer, head, "mean"] - model.ablations.whole).mean())
                for head in range(HEADS)
            ]
            assert cells[layer] == pytest.approx(expected)


def test_agreement_is_a_symmetric_matrix() -> None:
    maps = [(0, 0), (0, 2), (1, 0), (1, 2)]
    values = torch.rand(SEQUENCES, 4, 4, dtype=torch.double)
    values = (values + values.transpose(1, 2)) / 2
    values[:, 3] = values[:, :, 3] = torch.nan
    agreement = Agreement(maps, values, [(0, 1), (1, 1)])
    rows = mechanism_rows.agreement_rows(MODELS, agreement)
    figure = mechanism_figures.map_agreement(rows)
    cells, _ = heat(figure, "layers in order, from the top left")
    assert cells[:3, :3] == pytest.approx(values.mean(dim=0)[:3, :3].numpy())
    assert np.isnan(cells[3]).all() and np.isnan(cells[:, 3]).all()
    notes: list[Any] = [row["note"] for row in rows if row["note"]]
    means = values.mean(dim=0)
    (table,) = (cells for title, cells in summary_tables(MODELS, agreement) if title.startswith("Agreement"))
    across = f"{float(means[:2, 2].mean()):.3g}"
    assert table == [["model", "one", "other"], ["one", f"{float(means[0, 1]):.3g}", across], ["other", across, ""]]
    assert notes == ["a uniform map agrees with nothing"] * 4 + [mechanism_rows.NO_MAP] * 2


def test_one_sequence_has_no_interval_and_everything_is_drawn() -> None:
    full = found("single", 3)
    single = ModelFindings(
        "single",
        "/single",
        None,
        None,
        full.layers,
        InductionFindings([None] * 3, full.induction.copies[:1], 6),
        PositionLosses(full.position.losses[:1]),
        Ablations(full.ablations.whole[:1], {place: one[:1] for place, one in full.ablations.found.items()}),
    )
    rows = mechanism_rows.ablation_rows([single])
    assert {(row["difference low"], row["sequences"]) for row in rows} == {(None, 1)}
    mechanism_figures.ablated_mixers(rows)
    position = mechanism_rows.position_rows([single])
    (axes,) = mechanism_figures.loss_by_position(position, figures.looks_of({"single": list(VARIANTS)})).axes
    assert not axes.collections
    (cells, _) = heat(mechanism_figures.induction_heads(mechanism_rows.induction_rows([single])), "single: induction")
    assert np.isnan(cells).all()
    tables = dict(summary_tables([single]))
    line = tables["Heads on random tokens that come twice (layer.head: score)"][1]
    assert line[1:3] == ["no map", "no map"] and line[-1] == "0 of 3"
