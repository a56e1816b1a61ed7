"""What a training on the bundled corpus ends with: its curve beside standard attention's, a text, what to try next.

Standard attention's curve and the losses of the paper's variants are stored: `benchmarks/demo_recipe.py` made
`demo_recipe.json` of runs with the same flags, in fp32 on a CPU, three seeds each.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from deconattn.config.flags import TrainingFlags
from deconattn.config.pattern import STANDARD
from deconattn.config.presets import size_defaults
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.generation.sampling import Sampling
from deconattn.program import command, plugin_flag, quoted
from deconattn.runs.curves import Curve, Panel, panels_of_runs
from deconattn.runs.run import Run, read_run
from deconattn.runs.terminal import drawing
from deconattn.runs.texts import continuation
from deconattn.shown import one_line

PROMPT = "ROMEO:"
MOST_PARAMETERS = 10_000_000
"""Of a model that writes a text unasked, which must not take long on a CPU."""
SMOOTH = 0.9
"""Weight of the steps before in a smoothed loss."""


def bid_farewell(flags: TrainingFlags, folder: Path) -> None:
    """Print what a finished run on the bundled corpus shows, on standard error as all of a training's lines.

    Whatever goes wrong is one line: the run itself is whole.
    """
    if flags.data.data:
        return
    console = Console(stderr=True)
    try:
        run = read_run(folder)
        stored = _recipe() if is_recipe(flags) else None
        console.print(drawing([_panel(run, stored)], console))
        lines = [*_beside(run, flags, stored), *_text(run, flags), *_next(flags, folder)]
        print("\n".join(lines), file=sys.stderr, flush=True)
    except (UserError, OSError) as error:
        print(one_line(f"note: no closing picture: {error}"), file=sys.stderr)


def is_recipe(flags: TrainingFlags) -> bool:
    """Whether a run differs from the stored ones in variant, pattern, seed and where it is kept alone."""
    plain = size_defaults("tiny")
    model = dataclasses.replace(flags.model, variant=plain.model.variant, pattern=plain.model.pattern, plugin=())
    learning = dataclasses.replace(flags.optimization, seed=plain.optimization.seed)
    return (model, flags.data, learning) == (plain.model, plain.data, plain.optimization)


def _recipe() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((files(__package__) / "demo_recipe.json").read_text(encoding="utf-8"))
    return stored


def _panel(run: Run, stored: dict[str, Any] | None) -> Panel:
    [panel] = panels_of_runs([run], ["loss"], "step", SMOOTH, log=False)
    own = [dataclasses.replace(curve, raw=[], label="this run") for curve in panel.curves]
    if stored is None:
        return dataclasses.replace(panel, curves=own)
    points = [(float(step), loss) for step, loss in stored["standard"]]
    return dataclasses.replace(panel, curves=[Curve("standard, three seeds", STANDARD, 0, points, [], [], False), *own])


def _beside(run: Run, flags: TrainingFlags, stored: dict[str, Any] | None) -> Iterator[str]:
    if stored is None or not (values := run.values("val_loss")):
        return
    yield f"validation loss of this run, and of the same recipe with three seeds: {values[-1][1]:.3f}"
    same = f"{flags.model.variant} {flags.model.pattern}"
    for name in dict.fromkeys((f"{STANDARD} uniform", same)):
        if losses := stored["val_loss"].get(name):
            yield f"  {name}: {min(losses):.3f} to {max(losses):.3f}"


def _text(run: Run, flags: TrainingFlags) -> Iterator[str]:
    if run.parameters is None or run.parameters > MOST_PARAMETERS:
        return
    sampling = Sampling(max_new_tokens=60, temperature=0.8, seed=1)
    yield f"what it makes of {PROMPT!r}:"
    written = continuation(run, PROMPT, sampling, flags.model.plugin, False)
    yield from (f"  {line}" for line in (PROMPT + written).splitlines() if line.strip())


def _next(flags: TrainingFlags, folder: Path) -> Iterator[str]:
    plugins = plugin_flag(flags.model.plugin)
    yield "try next:"
    yield f'  {command("generate")} {quoted(folder)} --prompt "{PROMPT}" --temperature 0.8{plugins}'
    other = STANDARD if flags.model.variant != STANDARD else "nonapproximate"
    beside = folder.with_name(f"{folder.name}-{other}")
    same = "" if is_recipe(flags) else f"--config {quoted(folder / RUN_CONFIG)} "
    pattern = "" if flags.model.pattern == "uniform" else "--pattern uniform "
    yield f"  {command('train')} {same}--variant {other} {pattern}--save {quoted(beside)}"
    yield f"  {command('compare')} {quoted(folder)} {quoted(beside)}"
