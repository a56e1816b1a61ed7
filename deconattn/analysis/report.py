"""The folder of an analysis, pictures with their data beside them, and its table for the terminal."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from deconattn.analysis import figures, findings
from deconattn.analysis.findings import ModelFindings, Row, Scale, by_run, newest
from deconattn.analysis.indicators import NAMES
from deconattn.analysis.pre_softmax import bin_edges
from deconattn.durable import staged_folder
from deconattn.errors import UserError
from deconattn.pages.palette import STYLE

SUMMARY = "analysis.json"


def check_free(out: Path) -> None:
    """Raises UserError unless `out` can become a folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder: give another")


def write_report(models: Sequence[ModelFindings], sample: dict[str, Any], out: Path) -> None:
    """Write `out`, whole or not at all: what was compared, and each picture that there is something to draw for.

    Of a run's steps all are in `indicators` and `entropy-over-steps`, the last in the other pictures.

    Args:
        sample: source of the text, sequences, and tokens in each (`seq_len`).

    Raises:
        UserError: `out` is in use or cannot be written.
    """
    shown = newest(models)
    scale = Scale(shown)
    looks = figures.looks_of({model.label: model.variants for model in shown})
    depth = max(len(model.layers) for model in shown)
    with staged_folder(out, check_free) as folder:
        _write_json(folder / SUMMARY, _summary(models, sample, scale))
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
        for model in shown:
            for number, layer in enumerate(model.layers, start=1):
                if layer.picture is not None:
                    rows = findings.map_rows(model, number)
                    name = f"map-{_file_name(model.label)}-layer-{number}"
                    _write(figures.heat_maps(rows, sample["seq_len"]), rows, folder / name)


def summary_table(models: Sequence[ModelFindings]) -> Table:
    """The indicators of each model, means over heads and over the layers that mix."""
    table = Table(title="Attention indicators, mean over heads and layers")
    for column in ("model", *NAMES, "layers"):
        table.add_column(column.replace("focus ", ""), justify="left" if column == "model" else "right", no_wrap=True)
    for model in models:
        means = model.means
        cells = [f"{means[name]:.4g}" for name in NAMES] if means else [""] * len(NAMES)
        mixing = sum(layer.indicators is not None for layer in model.layers)
        table.add_row(escape(model.label), *cells, f"{mixing} of {len(model.layers)}")
    return table


def _summary(models: Sequence[ModelFindings], sample: dict[str, Any], scale: Scale) -> dict[str, Any]:
    named = [
        {"model": model.label, "path": model.path, "step": model.step, "layers": model.variants} for model in models
    ]
    bounds = {name: {"smallest": low, "largest": high} for name, (low, high) in scale.bounds.items()}
    return {"sample": sample, "models": named, "normalised": bounds, "activation_bin_edges": bin_edges().tolist()}


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
