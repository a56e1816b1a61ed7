"""What the bundled corpus's recipe gives, stored for the end of every first run: deconattn/launch/demo_recipe.json.

    python tools/reproduce.py --table 1 --size tiny --seeds 3 --out OUT
    python benchmarks/demo_recipe.py OUT

The runs are those of :mod:`deconattn.reproduction`, whose flags are the defaults of `launch.sh`.
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import ROOT
from deconattn import durable
from deconattn.cli import parse, run
from deconattn.launch import farewell
from deconattn.runs.curves import binned, smoothed
from deconattn.runs.run import read_runs

POINTS = 60


@dataclass(frozen=True)
class Arguments:
    """Store the recipe's losses."""

    reproduction: Annotated[Path, tyro.conf.Positional]
    """Folder of the reproduction."""


def main() -> None:
    curves, losses = list[list[float]](), defaultdict[str, list[float]](list)
    steps: list[int] = []
    for one in read_runs(sorted((parse(Arguments).reproduction / "runs").iterdir())):
        assert one.config is not None, one.fault
        assert farewell.is_recipe(one.config.flags), one.name
        model = one.config.flags.model
        losses[f"{model.variant} {model.pattern}"].append(round(one.values("val_loss")[-1][1], 4))
        if model.variant == "standard":
            steps, values = map(list, zip(*one.values("loss"), strict=True))
            curves.append(smoothed(values, farewell.SMOOTH))
    means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
    points = binned(list(zip(map(float, steps), means, strict=True)), POINTS)
    content = {"standard": [[step, round(loss, 4)] for step, loss in points], "val_loss": dict(sorted(losses.items()))}
    durable.write_text(ROOT / "deconattn" / "launch" / "demo_recipe.json", json.dumps(content) + "\n")


if __name__ == "__main__":
    run(main)
