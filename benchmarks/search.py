"""Which layers of a pretrained model need attention, and whether the pattern found beats the others before healing.

Runs `tools/search.py` on a model, and writes what came of it with what it cost, core-seconds of the table and of the
search apart, and a picture. The same command goes on where it was stopped; what was measured before costs nothing then.

    python benchmarks/search.py MODEL --keep 15 --text wikitext.jsonl --out runs/search

For SmolLM2-135M on two cores the table of six variants (180 cells) is meant to take less than an hour.
"""

import json
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, write_result
from benchmarks.plots.search import draw_search
from deconattn.cli import parse, run
from deconattn.errors import UserError
from deconattn.surgery.results import RESULTS as FOUND


@dataclass(frozen=True)
class Arguments:
    """Measure and search, and write one result."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run, an export or a Hugging Face folder."""
    keep: int
    """Layers to keep as they are."""
    out: Path
    """The folder of the search, which goes on there."""
    text: tuple[str, ...] = ()
    """Text files; by default the bundled demo corpus."""
    flags: str = ""
    """Other flags of tools/search.py, in one word: --flags='--seq-len 256 --held-out 16'."""
    result: Path = RESULTS / "search.json"
    """The result to write."""
    picture: Path = ROOT / "docs" / "images" / "search"
    """The picture to write, without suffix."""


def main() -> int:
    """Search, and write the result."""
    arguments = parse(Arguments)
    command = [sys.executable, str(ROOT / "tools" / "search.py"), str(arguments.model), "--out", str(arguments.out)]
    command += (["--text", *arguments.text] if arguments.text else []) + shlex.split(arguments.flags)
    spent = {}
    for part, flags in (("table", ["--pairs", "0"]), ("search", ["--keep", str(arguments.keep)])):
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        code = subprocess.run([*command, *flags], check=False).returncode
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if code:
            raise UserError(f"tools/search.py ended with {code}: what it said is above; the same command goes on")
        cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        spent[part] = {"seconds": round(time.monotonic() - began, 1), "core_seconds": round(cores, 1)}
        print(f"{part}: {spent[part]['seconds']:.0f} s, {cores:.0f} core-seconds")
    found: dict[str, Any] = json.loads((arguments.out / FOUND).read_text(encoding="utf-8"))
    result = {"model": found["label"], "spent": spent, "keep": arguments.keep, **found}
    write_result(arguments.result, result)
    draw_search(result, arguments.picture)
    return 0


if __name__ == "__main__":
    run(main)
