"""Plan a model before training it: parameter counts of every variant at a size.

python tools/plan.py --size 500m
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import parse, run
from deconattn.config import ModelFlags, model_config, size_defaults
from deconattn.cost.parameters import count_parameters
from deconattn.mixers import variant_names
from deconattn.mixers.plugins import load_plugins
from deconattn.pattern import STANDARD

PYTHIA_VOCABULARY = 50277


@dataclass(frozen=True)
class Plan:
    """Parameter counts of every variant in a pattern, against standard attention."""

    model: ModelFlags = field(default_factory=ModelFlags)


def main() -> None:
    size = parse(Plan).model.size
    flags = parse(Plan, default=Plan(size_defaults(size).model)).model
    load_plugins(flags.plugin)
    counts = {}
    for variant in variant_names():
        config = model_config(dataclasses.replace(flags, variant=variant), PYTHIA_VOCABULARY, 2048)
        counts[variant] = count_parameters(config)
    table = Table(title=f"Parameters, size {flags.size}, pattern {flags.pattern}, vocabulary {config.vocab_size}")
    for column in ("variant", "total", "non-embedding", "difference"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    standard = counts[STANDARD]
    for variant, count in sorted(counts.items(), key=lambda item: item[0] != STANDARD):
        difference = count.total - standard.total
        share = f"{difference:+,} ({difference / standard.total:+.4%})" if difference else "0"
        table.add_row(variant, f"{count.total:,}", f"{count.non_embedding:,}", share)
    Console().print(table)


if __name__ == "__main__":
    run(main)
