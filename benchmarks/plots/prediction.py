"""What is predicted of GPUs that are not at hand (`roofline.json`), drawn and as a section, apart from measurements."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plots.data import Origin, origin_of
from benchmarks.roofline.prediction import MODES
from benchmarks.roofline.report import PLAIN, SHOWN, cards_table, steps_table, what

BEGIN = "<!-- prediction: made by python benchmarks/plots/plot.py docs/performance.md -->"
END = "<!-- end of prediction -->"
KEY = "roofline"


@dataclass(frozen=True)
class Prediction:
    """A run of `roofline/predict.py`.

    Attributes:
        rows: a size, variant, mode and side (`before`, `after`) each.
    """

    options: dict[str, Any]
    rows: list[dict[str, Any]]
    origin: Origin

    @property
    def sizes(self) -> list[str]:
        return list(dict.fromkeys(row["size"] for row in self.rows))

    def of(self, size: str, mode: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["size"] == size and row["mode"] == mode]


def predicted(results: Path) -> Prediction | None:
    """Read `roofline.json`, if it is there."""
    path = results / f"{KEY}.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return Prediction(result["options"], result["results"], origin_of(result))


def prediction_section(found: Prediction, images: Path, folder: Path) -> str:
    """Markdown for a page in `folder`; the picture is shown where it was drawn."""
    plain = PLAIN
    for written, path in (("../roofline/", "benchmarks/roofline"), ("../../deconattn/", "deconattn")):
        plain = plain.replace(written, f"{os.path.relpath(path, folder.name)}/")
    parts = [f"**{plain}** A step is {what(found.options)}; before → after where both were traced."]
    image = images / f"{KEY}.svg"
    if image.is_file():
        parts.append(f"![{KEY}]({os.path.relpath(image, folder)})")
    for size in found.sizes:
        for mode in MODES:
            if rows := found.of(size, mode):
                parts.append(f"**{size}, {mode}, predicted for an {SHOWN}:**\n\n{steps_table(rows).strip()}")
        if rows := found.of(size, MODES[0]):
            parts.append(f"**{size}, {MODES[0]}, predicted MFU:**\n\n{cards_table(rows).strip()}")
    origin = found.origin
    parts.append(f"{origin.date}, the null GPU under {origin.versions}: `{origin.command}`")
    return "\n\n".join(parts)


def draw_prediction(found: Prediction, path: Path) -> None:
    """Milliseconds of a compiled step on a card by its parts: a panel a size, a bar a variant, before and after."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from benchmarks.plots.figures import save
    from benchmarks.roofline.works import PARTS
    from deconattn.pages.palette import STYLE

    panels = {size: rows for size in found.sizes if (rows := found.of(size, MODES[0]))}
    colours = [mpl.colormaps["tab10"](number) for number in range(len(PARTS))]
    with mpl.rc_context(STYLE):
        heights = [len(rows) for rows in panels.values()]
        figure = Figure(figsize=(9, max(3.2, 1 + 0.5 * len(panels) + 0.26 * sum(heights))), layout="constrained")
        axes_of = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (size, rows) in zip(axes_of, panels.items(), strict=True):
            for place, row in enumerate(rows):
                on, left = row["predicted"][SHOWN], 0.0
                for part, colour in zip(PARTS, colours, strict=True):
                    axes.barh(place, on["parts"][part], left=left, color=colour, height=0.75, label=part)
                    left += on["parts"][part]
                idle = on["expected"] - left  # the device waits for the host
                axes.barh(place, idle, left=left, color="none", edgecolor=STYLE["text.color"], height=0.75, hatch="///")
                axes.annotate(
                    f"{on['mfu']:.0%}", (on["expected"], place), xytext=(5, 0), textcoords="offset points",
                    va="center", fontsize=8,
                )  # fmt: skip
            axes.set_yticks(range(len(rows)), [f"{row['variant']}, {row['side']}" for row in rows], fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.1, y=0.02)
            axes.set_title(size, fontsize=11)
        axes_of[-1].set_xlabel(f"predicted ms a step on an {SHOWN}; hatched: it waits for the host; beside: MFU")
        handles, labels = axes_of[0].get_legend_handles_labels()
        first = dict(zip(labels[: len(PARTS)], handles[: len(PARTS)], strict=True))
        figure.legend(first.values(), first, loc="outside right center", frameon=False, fontsize=9)
        figure.suptitle("A training step by its parts: predicted, not measured", fontsize=12)
        save(figure, path)
