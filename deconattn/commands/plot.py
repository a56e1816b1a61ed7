"""Draw what runs tell of themselves while they train: plot RUN... [--out FILE].

In the terminal, or as a picture or a page:

    plot runs/standard runs/fixedseq --metric loss val_loss --x tokens --smooth 0.9
    plot runs/standard runs/fixedseq --out curves.html
    plot runs/standard --live
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from deconattn import durable
from deconattn.cli import check_out, parse
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.program import command

if TYPE_CHECKING:
    from deconattn.runs.curves import Panel
    from deconattn.runs.run import Run

ENDINGS = (".png", ".svg", ".html")
INTERRUPTED = 130


@dataclass(frozen=True)
class Arguments:
    """Draw runs' losses, gradient norms, learning rates, throughput and scores.

    Several runs are drawn together; the legend says what differs between them.
    """

    run: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders."""
    metric: tuple[str, ...] = ()
    """What to draw, by the names of metrics.jsonl; by default losses, gradient norm, learning rate, throughput, memory
    and scores, as far as they are there."""
    x: Literal["step", "tokens", "flops", "time"] = "step"
    """Over steps, tokens, useful FLOPs, or hours of training steps."""
    smooth: float = 0.0
    """Weight of an exponential moving average, from 0 (none) to below 1; what it smooths stays faintly behind it."""
    log: bool = False
    """Logarithmic upright axes."""
    out: Path | None = None
    """File to write: .png, .svg, or .html, which says its values when pointed at. By default the terminal."""
    live: bool = False
    """Draw in the terminal again and again until all runs have ended."""
    every: float = 5.0
    """With --live: seconds between drawings."""


def main(words: Sequence[str]) -> int | None:
    """Read the flags and draw; 130, as shells have it, after Ctrl-C."""
    arguments = parse(Arguments, words, program=command("plot"))
    _check(arguments)
    try:
        _live(arguments) if arguments.live else _once(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    return None


def _check(arguments: Arguments) -> None:
    if not 0 <= arguments.smooth < 1:
        raise UserError(f"--smooth {arguments.smooth:g}: give a weight from 0 to below 1, such as 0.9")
    if not arguments.every > 0:
        raise UserError(f"--every {arguments.every:g}: give seconds above 0")
    out = arguments.out
    if arguments.live and out is not None:
        raise UserError("--live draws in the terminal: leave out --out, or --live")
    if arguments.live and not sys.stdout.isatty():
        raise UserError("--live needs a terminal: give --out FILE, or leave it out")
    if out is not None:
        check_out(out, ENDINGS)
        require("plot", f"writing {out}")


def _once(arguments: Arguments) -> None:
    from deconattn.runs.run import read_runs

    runs = read_runs(arguments.run)
    panels = _panels(runs, arguments)
    for run in runs:
        if run.fault:
            print(f"note: {run.fault}", file=sys.stderr)
    for panel in panels:
        if panel.without:
            print(f"note: {panel.metric}: not in {', '.join(panel.without)}", file=sys.stderr)
        if panel.left_out:
            why = "are not finite or not above zero" if arguments.log else "are not finite"
            print(f"note: {panel.metric}: {panel.left_out} values {why}, and are not drawn", file=sys.stderr)
    out = arguments.out
    if out is None:
        from deconattn.runs.terminal import drawing

        console = Console()
        console.print(drawing(panels, console))
        return
    if out.suffix == ".html":
        from deconattn.runs.pages import plot_page

        content = plot_page(runs, panels, arguments.smooth).encode()
    else:
        from deconattn.runs.figure import picture

        content = picture(panels, out.suffix[1:])
    with durable.disk_errors(out):
        durable.write_bytes(out, content)
    print(f"written: {out}")


def _live(arguments: Arguments) -> None:
    from rich.live import Live

    from deconattn.runs.run import read_runs, state_of
    from deconattn.runs.terminal import drawing

    console = Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            runs = read_runs(arguments.run)
            training = any(state_of(run).word == "training" for run in runs)
            if any(run.metrics for run in runs) or not training:
                live.update(drawing(_panels(runs, arguments), console, screen=True), refresh=True)
            else:
                live.update("no metrics yet", refresh=True)
            if not training:
                break
            time.sleep(arguments.every)


def _panels(runs: "list[Run]", arguments: Arguments) -> "list[Panel]":
    from deconattn.runs.curves import chosen_metrics, panels_of_runs

    metrics = chosen_metrics(runs, arguments.metric)
    return panels_of_runs(runs, metrics, arguments.x, arguments.smooth, arguments.log)
