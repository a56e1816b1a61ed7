"""Pictures and the section of docs/performance.md, from whatever results exist.

    python benchmarks/plots/plot.py                        # benchmarks/results/*.json to docs/images/*.svg and *.png
    python benchmarks/plots/plot.py docs/performance.md    # and the section between its markers

Needs Matplotlib. A run of one sequence length has no curve to draw: it is a table in the section alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, ROOT
from benchmarks.plots.data import Decoding, Operations, Throughput, decodings, operations, throughputs
from benchmarks.plots.prediction import BEGIN, END, KEY, Prediction, draw_prediction, predicted, prediction_section
from benchmarks.plots.section import performance_section, with_section
from deconattn.cli import parse, run
from deconattn.errors import UserError
from deconattn.extras import require


@dataclass(frozen=True)
class Arguments:
    """Draw the results, and write them into a page."""

    page: tyro.conf.Positional[Path | None] = None
    """File with the two markers of the performance section."""
    results: Path = RESULTS
    """Folder of the benchmarks' JSON files."""
    images: Path = ROOT / "docs" / "images"
    """Folder of the pictures."""


def draw(
    found: list[Throughput],
    generated: list[Decoding],
    measured: list[Operations],
    images: Path,
    prediction: Prediction | None = None,
) -> list[Path]:
    """Every picture, as SVG and PNG; their paths without suffix.

    Raises:
        UserError: Matplotlib is not installed.
    """
    require("plot", "drawing")
    from benchmarks.plots.figures import draw_cache_bytes, draw_operations, draw_step_times, draw_throughput

    drawn = []
    for throughput in found:
        drawn.append(images / throughput.key)
        draw_throughput(throughput, drawn[-1])
    for decoding in generated:
        if len(decoding.lengths) > 1:
            drawn += [images / f"{decoding.key}-{what}" for what in ("time", "cache")]
            draw_step_times(decoding, drawn[-2])
            draw_cache_bytes(decoding, drawn[-1])
    for operation in measured:
        if len(operation.lengths) > 1:
            drawn.append(images / operation.key)
            draw_operations(operation, drawn[-1])
    if prediction is not None:
        drawn.append(images / KEY)
        draw_prediction(prediction, drawn[-1])
    return drawn


def main() -> None:
    """Draw, and write the section."""
    arguments = parse(Arguments)
    read = throughputs(arguments.results), decodings(arguments.results), operations(arguments.results)
    prediction = predicted(arguments.results)
    if not any(read) and prediction is None:
        raise UserError(
            f"{arguments.results} has no results to show: run training/step.py, training/cpu.py, decoding/decode.py, "
            "kernels/operations.py or roofline/predict.py"
        )
    for path in draw(*read, arguments.images, prediction):
        print(f"{path}.svg, .png")
    if arguments.page:
        folder = arguments.page.resolve().parent
        section = performance_section(*read, arguments.images.resolve(), folder)
        page = with_section(arguments.page.read_text("utf-8"), section)
        if prediction is not None:
            page = with_section(page, prediction_section(prediction, arguments.images.resolve(), folder), BEGIN, END)
        arguments.page.write_text(page, encoding="utf-8")
        print(f"written: {arguments.page}")


if __name__ == "__main__":
    run(main)
