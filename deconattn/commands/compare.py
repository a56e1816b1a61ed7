"""Put runs beside each other: compare RUN... [--out PAGE.html].

What differs in their settings and results, runs that differ by seed alone taken together:

    compare runs/standard-* runs/fixedseq-* --out compared.html --prompt "ROMEO:"
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from deconattn import durable
from deconattn.cli import check_out, parse, show
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.generation.sampling import Sampling
from deconattn.program import command

if TYPE_CHECKING:
    from deconattn.runs.comparison import Comparison

ENDINGS = (".html", ".md")
_TEXT = tyro.conf.arg(constructor=str, metavar="TEXT", help_behavior_hint="(--prompt=TEXT where it begins with a dash)")


@dataclass(frozen=True)
class Arguments:
    """Compare runs: settings, results, curves, and texts if they are asked for.

    Runs that differ by seed alone are one group: its mean has a 95 % interval, and differences from the first group are
    paired by seed.
    """

    run: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders."""
    out: Path | None = None
    """File to write: .html, a page with curves, or .md. The table is printed in any case."""
    prompt: Annotated[str | None, _TEXT] = None
    """Have each run's newest good checkpoint continue this text."""
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=100, seed=1))
    plugin: tuple[Path, ...] = ()
    """With --prompt: Python files that register the variants of third parties that the models have."""
    trust_plugins: bool = False
    """With --prompt: run the plugins that the runs name, which are somebody's code, without being given them."""


def main(words: Sequence[str]) -> None:
    """Read the flags, compare, print the table and write the page."""
    arguments = parse(Arguments, words, program=command("compare"))
    out = arguments.out
    arguments.sampling.check()
    if out is not None:
        check_out(out, ENDINGS)
    for flag, given in (("--plugin", arguments.plugin), ("--trust-plugins", arguments.trust_plugins)):
        if given and arguments.prompt is None:
            raise UserError(f"{flag} is for the texts of --prompt: give a prompt, or leave it out")
    require("plot", "comparing runs")
    from deconattn.runs.comparison import compare
    from deconattn.runs.run import read_runs
    from deconattn.runs.tables import comparison_markdown, comparison_table

    comparison = compare(read_runs(arguments.run))
    if arguments.prompt is not None:
        comparison = replace(comparison, texts=_texts(comparison, arguments, arguments.prompt))
    show(comparison_table(comparison))
    for note in comparison.notes:
        print(f"note: {note}", file=sys.stderr)
    if out is None:
        for name, text in comparison.texts.items():
            print(f"\n{name}:\n{text}")
        return
    if out.suffix == ".md":
        content = comparison_markdown(comparison, arguments.prompt)
    else:
        from deconattn.runs.curves import chosen_metrics, panels_of_groups
        from deconattn.runs.pages import comparison_page

        metrics = chosen_metrics([run for run, _ in comparison.runs], ())
        panels = panels_of_groups(comparison.groups, metrics, "tokens")
        content = comparison_page(comparison, panels, arguments.prompt)
    with durable.disk_errors(out):
        durable.write_text(out, content)
    print(f"written: {out}")


def _texts(comparison: "Comparison", arguments: Arguments, prompt: str) -> dict[str, str]:
    """Return what each run writes, or why it does not."""
    from deconattn.runs.texts import continuation

    texts = {}
    for run, _ in comparison.runs:
        try:
            found = continuation(run, prompt, arguments.sampling, arguments.plugin, arguments.trust_plugins)
        except UserError as error:
            print(f"note: {run.name} writes nothing: {error}", file=sys.stderr)
            found = f"(nothing: {error})"
        texts[run.name] = found
    return texts
