"""See what mixers do, in minutes: demo [--compare standard fixedseq nonapproximate mlp] [--out demo].

Trains each on the bundled corpus, probes what it recalls, draws where it looks, and puts all on one page.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deconattn.cli import handled, parse
from deconattn.durable import disk_errors
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.program import command


@dataclass(frozen=True)
class Arguments:
    """Train variants for a minute or two each, and open one page: curves, probes, maps, texts, side by side.

    The same command goes on where it was stopped.
    """

    compare: tuple[str, ...] = ("standard", "fixedseq", "nonapproximate", "mlp")
    """Variants, two to six of the paper's and the field's (docs/zoo.md)."""
    out: Path = Path("demo")
    """Folder to write; index.html is the page."""
    steps: int = 200
    """Steps of each training."""


def main(words: Sequence[str]) -> int:
    """Check the flags, do what is not done yet, and say where the page is."""
    arguments = parse(Arguments, words, program=command("demo"))
    require("plot", "the page")
    from deconattn.config.pattern import check_variant
    from deconattn.mixers import known_names
    from deconattn.reproduction.demo import Demo, make

    for name in arguments.compare:
        check_variant(name, known_names())
    if not 2 <= len(set(arguments.compare)) == len(arguments.compare) <= 6:
        raise UserError(f"--compare {' '.join(arguments.compare)}: give two to six variants, each once")
    if arguments.steps < 20:
        raise UserError(f"--steps {arguments.steps}: give 20 or more, or there is nothing to see")
    import torch

    cores = len(os.sched_getaffinity(0))
    jobs = 1 if torch.cuda.is_available() else min(cores, len(arguments.compare))
    again = f"{command('demo')} {' '.join(words)}".rstrip()
    try:
        with disk_errors(arguments.out), handled(_interrupt, signal.SIGTERM):
            page = make(Demo(arguments.compare, arguments.out.resolve(), arguments.steps, jobs))
    except KeyboardInterrupt:
        print(f"stopped; to go on: {again}", file=sys.stderr)
        return 130
    print(f"page: {page}")
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
