"""Score trained models on the paper's nine benchmarks: evaluate MODEL..."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from deconattn.cli import parse
from deconattn.durable import check_replaceable, replaceable_folder
from deconattn.errors import UserError
from deconattn.evaluation import harness
from deconattn.evaluation.datasets import data_files
from deconattn.evaluation.results import Row, as_numbers, row_of, write_results
from deconattn.evaluation.tables import benchmark_cells, context_cells, show
from deconattn.evaluation.tasks import BENCHMARKS, benchmarks
from deconattn.extras import require
from deconattn.program import command
from deconattn.shown import markdown_table

if TYPE_CHECKING:
    from deconattn.checkpoint.stored_model import StoredModel

RESULTS, TABLES = "results.json", "results.md"
COMMAND = "evaluate"


@dataclass(frozen=True)
class Arguments:
    """Score trained models, zero-shot, with EleutherAI's lm-evaluation-harness.

    Writes results.json and results.md, and prints the table.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    """Hugging Face folders, run folders (the newest good checkpoint) or step-N folders."""
    tasks: str = ""
    """Comma-separated: arc_easy, boolq, copa, piqa, sciq, rte, hellaswag, wikitext, lambada_openai; by default all."""
    datasets: Path | None = None
    """Folder with the tasks' documents (docs/evaluation.md); the network is not used then. By default the hub's."""
    limit: int | None = None
    """Score only the first so many documents of a task: for trying things, the scores are not comparable."""
    batch_size: int | None = None
    """Sequences a batch; by default the largest that the GPU holds, or 4096 tokens on a CPU."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Precision to compute in; by default what the export stores or the run computed in."""
    context_lengths: str = ""
    """Comma-separated: WikiText word perplexity at each of these context lengths, too."""
    skip_variant_layers: bool = False
    """Take out the layers that are not standard (the paper's skip ablation)."""
    skip: str | None = None
    """Take out these layers, numbers from 1, comma-separated."""
    plugin: tuple[Path, ...] = ()
    """Python files that register the variants of third parties that the models have."""
    trust_plugins: bool = False
    """Run the plugins that a run names, which are somebody's code, without being given them."""
    out: Path | None = None
    """Folder to write; by default MODEL/evaluation."""
    overwrite: bool = False
    """Replace earlier results there."""
    wandb_project: str | None = None
    """Weights & Biases project; offline where there is no key."""


def main(words: Sequence[str]) -> None:
    """Read the flags and evaluate."""
    evaluate(parse(Arguments, words, program=command("evaluate")))


def evaluate(arguments: Arguments) -> None:
    """Check everything, score model after model, and write what came of it."""
    chosen = benchmarks(arguments.tasks)
    lengths = _context_lengths(arguments.context_lengths)
    for flag, number in (("--limit", arguments.limit), ("--batch-size", arguments.batch_size)):
        if number is not None and number < 1:
            raise UserError(f"{flag} {number}: give 1 or more")
    out = _out(arguments)
    check_replaceable(out, COMMAND, arguments.overwrite)
    require("eval", "evaluation")
    needed = list(chosen) if not lengths else [*chosen, BENCHMARKS["wikitext"]]
    files = None
    if arguments.datasets is not None:
        files = data_files(arguments.datasets, needed)
        harness.without_network()
    models = _open(arguments, lengths)
    with replaceable_folder(out, COMMAND, arguments.overwrite) as folder:
        with TemporaryDirectory(prefix="deconattn-evaluation-") as cache:
            tasks = harness.load_tasks(list(dict.fromkeys(needed)), files, Path(cache))
            scored = _score(arguments, models, tasks, [task.name for task in chosen], lengths)
        _write(arguments, scored, lengths, folder)
    print(f"written: {out / RESULTS}, {out / TABLES}", file=sys.stderr)
    if arguments.wandb_project:
        from deconattn.evaluation.results import log_to_wandb

        for row, entry in zip(scored.rows, scored.entries, strict=True):
            log_to_wandb(arguments.wandb_project, row, entry["model"], entry["context_perplexities"])


@dataclass
class _Scored:
    """Row and results.json entry of each model; `chance` are the rows that need no model."""

    rows: list[Row]
    entries: list[dict[str, Any]]
    chance: list[Row]


def _score(
    arguments: Arguments, models: "list[StoredModel]", tasks: harness.Tasks, chosen: list[str], lengths: list[int]
) -> _Scored:
    from deconattn.evaluation.chance import chance_rows

    wanted = {name: tasks[name] for name in chosen}
    scored = _Scored([], [], [])
    for stored in models:
        print(f"{stored.label}: {', '.join(wanted)}", file=sys.stderr)
        model = stored.load(arguments.dtype)
        common: dict[str, Any] = {"batch_size": arguments.batch_size, "limit": arguments.limit}
        found = harness.score(model, stored.tokenizer, wanted, **common)
        perplexities = {}
        for length in lengths:
            print(f"{stored.label}: WikiText, context of {length} tokens", file=sys.stderr)
            wikitext = {"wikitext": tasks["wikitext"]}
            at_length = harness.score(model, stored.tokenizer, wikitext, max_length=length, **common)
            perplexities[length] = float(at_length["results"]["wikitext"]["word_perplexity,none"])
        scored.rows.append(row_of(stored.label, found))
        description = {
            "label": stored.label,
            **_origin(stored),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }
        scored.entries.append({"model": description, "context_perplexities": perplexities, "harness": found})
        if not scored.chance:
            scored.chance = chance_rows(wanted, model, stored.tokenizer, arguments.limit)
        del model
    return scored


def _origin(stored: "StoredModel") -> dict[str, Any]:
    """Where a model comes from: path, layers left out, and of a run the step and the tokens that it has seen."""
    origin: dict[str, Any] = {"path": str(stored.path), "skipped_layers": sorted(stored.skipped)}
    if stored.checkpoint is not None:
        flags, step = stored.checkpoint.flags, stored.checkpoint.step
        origin |= {"step": step, "tokens": flags.plan.tokens(step)}
    return origin


def _write(arguments: Arguments, scored: _Scored, lengths: list[int], folder: Path) -> None:
    rows = [*scored.rows, *scored.chance]
    mark = "" if arguments.limit is None else f" (first {arguments.limit} documents of a task: not comparable)"
    tables = [(f"Zero-shot{mark}", benchmark_cells(rows))]
    if lengths:
        at_lengths = [
            (row.label, list(entry["context_perplexities"].values()))
            for row, entry in zip(scored.rows, scored.entries, strict=True)
        ]
        tables.append((f"WikiText word perplexity by context length{mark}", context_cells(lengths, at_lengths)))
    for entry, row in zip(scored.entries, scored.rows, strict=True):
        entry["scores"] = as_numbers(row)
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "comparable": arguments.limit is None,
        "settings": {key: value for key, value in vars(arguments).items() if key != "models"},
        "versions": harness.versions(),
        "models": scored.entries,
        "chance": {row.label: as_numbers(row) for row in scored.chance},
    }
    write_results(folder / RESULTS, content)
    (folder / TABLES).write_text("\n".join(markdown_table(*table) for table in tables), encoding="utf-8")
    console = Console()
    for table in tables:
        show(console, *table)


def _open(arguments: Arguments, lengths: list[int]) -> "list[StoredModel]":
    from transformers.utils.logging import disable_progress_bar

    from deconattn.checkpoint.stored_model import open_model
    from deconattn.checkpoint.without_layers import layer_numbers, variant_layers

    disable_progress_bar()
    skip = frozenset() if arguments.skip is None else frozenset(layer_numbers(arguments.skip))
    models = []
    for path in arguments.models:
        stored, skipped = open_model(path, arguments.plugin, arguments.trust_plugins), skip
        if arguments.skip_variant_layers:
            skipped = skip | variant_layers(stored.config)
        if arguments.skip is not None or arguments.skip_variant_layers:
            stored = stored.without(skipped)
        for length in lengths:
            if stored.longest is not None and length > stored.longest:
                raise UserError(
                    f"--context-lengths {length} is beyond the fixed stream of {stored.label}, {stored.longest} "
                    "tokens: leave it out"
                )
        models.append(stored)
    return models


def _context_lengths(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise UserError(f"--context-lengths {text}: {word!r} is no number of tokens; give some such as 128,256,512")
    return sorted({int(word) for word in words})


def _out(arguments: Arguments) -> Path:
    if not arguments.models:
        raise UserError("no model is given: name the folder of a run or a model")
    if arguments.out is None and len(arguments.models) > 1:
        raise UserError("several models make one table: say with --out which folder it goes to")
    out = arguments.out or arguments.models[0] / "evaluation"
    if arguments.out is None and not arguments.models[0].is_dir():
        from deconattn.checkpoint.kinds import kind_of

        kind_of(arguments.models[0])  # says what is wrong with it
    return out.resolve()
