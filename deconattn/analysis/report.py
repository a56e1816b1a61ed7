"""The folder of an analysis, pictures with their data beside them, and its tables, in Markdown and for the terminal."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from deconattn.analysis import figures, findings, mechanism_figures, mechanism_rows
from deconattn.analysis.ablation import MIXER
from deconattn.analysis.agreement import Agreement
from deconattn.analysis.findings import ModelFindings, Row, Scale, by_run, newest
from deconattn.analysis.indicators import NAMES
from deconattn.analysis.induction import SCORES
from deconattn.analysis.pre_softmax import bin_edges
from deconattn.durable import staged_folder
from deconattn.errors import UserError
from deconattn.pages.palette import STYLE
from deconattn.shown import markdown_table
from deconattn.statistics import Interval

SUMMARY, TABLES = "analysis.json", "analysis.md"
Cells = list[list[str]]
"""Rows of text, the columns' names first."""


def check_free(out: Path) -> None:
    """Raises UserError unless `out` can become a folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder: give another")


def write_report(
    models: Sequence[ModelFindings], sample: dict[str, Any], out: Path, agreement: Agreement | None = None
) -> None:
    """Write `out`, whole or not at all: what was compared, tables, and pictures where there is something to draw.

    Of a run's steps all are in the data, but in those of `agreement`; the last is in the pictures, and all in
    `entropy-over-steps`.

    Args:
        sample: source of the text, sequences, and tokens in each (`seq_len`).
        agreement: of the last steps.

    Raises:
        UserError: `out` is in use or cannot be written.
    """
    shown = newest(models)
    scale = Scale(shown)
    looks = figures.looks_of({model.label: model.variants for model in shown})
    depth = max(len(model.layers) for model in shown)
    with staged_folder(out, check_free) as folder:
        _write_json(folder / SUMMARY, _summary(models, sample, scale))
        tables = "\n".join(markdown_table(*table) for table in summary_tables(models, agreement))
        (folder / TABLES).write_text(tables, encoding="utf-8")
        if rows := findings.indicator_rows(models):
            _write_rows(rows, folder / "indicators")
        if rows := findings.layer_radar_rows(shown, scale):
            _write(figures.layer_radars(rows, depth, looks), rows, folder / "radar-layers")
        if rows := findings.model_radar_rows(shown, scale):
            _write(figures.model_radar(rows, looks), rows, folder / "radar")
        if rows := findings.activation_rows(shown):
            _write(figures.activation_bands(rows, depth), rows, folder / "activations")
        if rows := findings.entropy_rows(by_run(models)):
            _write(figures.entropy_over_steps(rows), rows, folder / "entropy-over-steps")
        for name, rows, figure in _mechanisms(models, shown, looks):
            _write(figure, rows, folder / name)
        if agreement is not None:
            rows = mechanism_rows.agreement_rows(shown, agreement)
            if agreement.maps:
                _write(mechanism_figures.map_agreement(rows), rows, folder / "agreement")
            else:
                _write_rows(rows, folder / "agreement")
        for model in shown:
            for number, layer in enumerate(model.layers, start=1):
                if layer.picture is not None:
                    rows = findings.map_rows(model, number)
                    name = f"map-{_file_name(model.label)}-layer-{number}"
                    _write(figures.heat_maps(rows, sample["seq_len"]), rows, folder / name)


def _mechanisms(
    models: Sequence[ModelFindings], shown: Sequence[ModelFindings], looks: dict[str, figures.Look]
) -> Iterator[tuple[str, list[Row], Figure]]:
    """Yield name and rows of each mechanism that was measured, of all steps, and its picture, of the last ones."""
    labels = {model.label for model in shown}
    drawn = {
        "induction": (mechanism_rows.induction_rows, mechanism_figures.induction_heads),
        "position": (
            mechanism_rows.position_rows,
            lambda rows: mechanism_figures.loss_by_position(rows, looks),
        ),
        "ablation": (mechanism_rows.ablation_rows, mechanism_figures.ablated_mixers),
        "head-ablation": (mechanism_rows.head_ablation_rows, mechanism_figures.ablated_heads),
    }
    for name, (rows_of, draw) in drawn.items():
        if rows := rows_of(models):
            yield name, rows, draw([row for row in rows if row["model"] in labels])


def summary_tables(models: Sequence[ModelFindings], agreement: Agreement | None = None) -> list[tuple[str, Cells]]:
    """Title and cells of each table: indicators, means over heads and over the layers that mix, and mechanisms."""
    tables = []
    if any(layer.indicators is not None for model in models for layer in model.layers):
        cells = [["model", *(name.replace("focus ", "") for name in NAMES), "layers"]]
        for model in models:
            means = model.means
            mixing = sum(layer.indicators is not None for layer in model.layers)
            values = [f"{means[name]:.4g}" for name in NAMES] if means else [""] * len(NAMES)
            cells.append([model.label, *values, f"{mixing} of {len(model.layers)}"])
        tables.append(("Attention indicators, mean over heads and layers", cells))
    if any(model.induction is not None for model in models):
        cells = [
            [
                "model",
                *(f"highest {score}" for score in SCORES),
                "equal weights",
                "loss, second less first copy",
                "layers",
            ]
        ]
        cells += [_induction_line(model) for model in models]
        tables.append(("Heads on random tokens that come twice (layer.head: score)", cells))
    if any(model.position is not None for model in models):
        cells = [["model", "loss", "tokens compared", "in-context learning"]]
        for model in models:
            if (found := model.position) is not None:
                early, late = found.compared
                cells.append([model.label, _shown(found.loss), f"{late} less {early}", _shown(found.in_context)])
        tables.append(("Loss in its context, nats", cells))
    if any(model.ablations is not None for model in models):
        cells = [["model", "loss", *(f"most by {name}" for name in MIXER), "head, most by mean"]]
        cells += [_ablation_line(model) for model in models]
        tables.append(("Loss gained without a mixer (layer) or a head (layer.head), nats", cells))
    if agreement is not None:
        tables.append(("Agreement of maps (CKA), mean over pairs of layers", _agreement_cells(models, agreement)))
    return tables


def printed(title: str, cells: Cells) -> Table:
    """A table for the terminal."""
    table = Table(title=title)
    for place, column in enumerate(cells[0]):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in cells[1:]:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _induction_line(model: ModelFindings) -> list[str]:
    found = model.induction
    if found is None:
        return [model.label] + [""] * 5
    best = []
    for score in range(len(SCORES)):
        place = found.best(score)
        named = "no map" if place is None else f"{place[0] + 1}.{place[1] + 1}: "
        best.append(named if place is None else named + _shown(found.of_head(*place)[score]))
    mapped = sum(scores is not None for scores in found.layers)
    return [model.label, *best, f"{found.uniform:.2g}", _shown(found.copying), f"{mapped} of {len(found.layers)}"]


def _ablation_line(model: ModelFindings) -> list[str]:
    found = model.ablations
    if found is None:
        return [model.label] + [""] * (2 + len(MIXER))
    cells = []
    for whole, name in (*((True, name) for name in MIXER), (False, "mean")):
        places = [place for place in found.found if place[2] == name and (place[1] is None) == whole]
        if not places:
            cells.append("")
            continue
        most = max(places, key=lambda place: found.difference(place).mean)
        named = f"{most[0] + 1}" if most[1] is None else f"{most[0] + 1}.{most[1] + 1}"
        cells.append(f"{named}: {_shown(found.difference(most))}")
    return [model.label, f"{float(found.whole.mean()):.4g}", *cells]


def _agreement_cells(models: Sequence[ModelFindings], found: Agreement) -> Cells:
    """Mean over pairs of layers that vary, of two models or of one, where a layer with itself does not count."""
    labels = [model.label for model in newest(models)]
    means = found.values.nanmean(dim=0)
    cells = [["model", *labels]]
    for one, label in enumerate(labels):
        cells.append([label])
        for other in range(len(labels)):
            pairs = [
                float(means[first, second])
                for first, place in enumerate(found.maps)
                for second, their_place in enumerate(found.maps)
                if (place[0], their_place[0]) == (one, other) and place != their_place
            ]
            values = [value for value in pairs if value == value]
            cells[-1].append(f"{sum(values) / len(values):.3g}" if values else "")
    return cells


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3g}" + ("" if interval.half is None else f" ± {interval.half:.1g}")


def _summary(models: Sequence[ModelFindings], sample: dict[str, Any], scale: Scale) -> dict[str, Any]:
    named = [
        {"model": model.label, "path": model.path, "step": model.step, "layers": model.variants, **_measured(model)}
        for model in models
    ]
    bounds = {name: {"smallest": low, "largest": high} for name, (low, high) in scale.bounds.items()}
    return {"sample": sample, "models": named, "normalised": bounds, "activation_bin_edges": bin_edges().tolist()}


def _measured(model: ModelFindings) -> dict[str, Any]:
    """What is known of a model as a whole; intervals are of 95 %, over sequences."""
    measured: dict[str, Any] = {}
    if (found := model.position) is not None:
        score = {"tokens": list(found.compared), **vars(found.in_context)}
        measured |= {"loss": vars(found.loss), "in_context_learning": score}
    if (heads := model.induction) is not None:
        repeated = {"period": heads.period, "uniform": heads.uniform, "second_less_first_copy": vars(heads.copying)}
        measured["repeated_tokens"] = repeated
    return measured


def _write(figure: Figure, rows: list[Row], stem: Path) -> None:
    """Write a figure as SVG and PNG, reproducible byte for byte, and its data."""
    with mpl.rc_context(STYLE):
        figure.savefig(f"{stem}.svg", transparent=True, metadata={"Date": None})
        figure.savefig(f"{stem}.png", transparent=True, dpi=160)
    _write_rows(rows, stem)


def _write_rows(rows: list[Row], stem: Path) -> None:
    """Write rows as Parquet and as JSON, a list for each column."""
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, f"{stem}.parquet")
    _write_json(Path(f"{stem}.json"), table.to_pydict())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-")
