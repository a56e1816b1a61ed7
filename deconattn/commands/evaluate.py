"""Score trained models on the paper's nine benchmarks, any of the harness's tasks, and long text: evaluate MODEL..."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from deconattn.analysis.sample import Sample
from deconattn.cli import parse
from deconattn.durable import check_replaceable, replaceable_folder
from deconattn.errors import UserError
from deconattn.evaluation import harness
from deconattn.evaluation.datasets import data_files
from deconattn.evaluation.long_text import DEPTHS, LongTexts, numbers, split_tasks, unique_labels
from deconattn.evaluation.perturbations import SEED, Perturbation, perturbations
from deconattn.evaluation.results import AVERAGE, Row, Score, as_numbers, row_of, write_results
from deconattn.evaluation.robustness import UNPERTURBED, changes
from deconattn.evaluation.selection import Loaded, Selection, check_generation, load, select
from deconattn.evaluation.tables import (
    benchmark_cells,
    context_cells,
    other_cells,
    perturbed_cells,
    shots_title,
    show,
)
from deconattn.evaluation.tasks import BENCHMARKS
from deconattn.extras import require
from deconattn.program import command
from deconattn.shown import markdown_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deconattn.checkpoint.stored_model import StoredModel

RESULTS, TABLES = "results.json", "results.md"
COMMAND, WIKITEXT = "evaluate", "wikitext"


@dataclass(frozen=True)
class Arguments:
    """Score trained models with EleutherAI's lm-evaluation-harness, and by position and with a needle in long text.

    Writes results.json, results.md and pictures of our own tasks, and prints the tables.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    """Hugging Face folders, run folders (the newest good checkpoint) or step-N folders."""
    tasks: str = ""
    """Comma-separated tasks, groups and tags of the harness, patterns such as arc_*, paths of task files (.yaml); by
    default the nine: arc_easy, boolq, copa, piqa, sciq, rte, hellaswag, wikitext, lambada_openai. Two more are our own
    and need no harness: position, perplexity by position in sequences of --seq-len tokens, and needle, a fact hidden in
    text and asked at its end."""
    sample: Sample = field(default_factory=Sample)
    needle_lengths: str = ""
    """Comma-separated tokens of the haystacks; by default --seq-len and its halves down to 128."""
    needle_depths: str = DEPTHS
    """Comma-separated per cent of the haystack before the needle."""
    include_path: tuple[Path, ...] = ()
    """Folders with task files of your own, whose names --tasks may give."""
    num_fewshot: int | None = None
    """Examples before each document; by default as many as the task's definition says, none for the nine."""
    perturb: tuple[str, ...] = ()
    """Score the texts before the answers perturbed, too: typos, word-shuffle, token-drop, each with =SHARE of the
    letters, words or tokens (by default 0.1)."""
    datasets: Path | None = None
    """Folder with the nine's documents (docs/evaluation.md); the network is not used then. By default the hub's."""
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
    lengths = numbers("--context-lengths", arguments.context_lengths)
    own, others = split_tasks(arguments.tasks)
    long_texts = LongTexts(own, arguments.sample, arguments.needle_lengths, arguments.needle_depths)
    changed = perturbations(arguments.perturb)
    for flag, number in (("--limit", arguments.limit), ("--batch-size", arguments.batch_size)):
        if number is not None and number < 1:
            raise UserError(f"{flag} {number}: give 1 or more")
    if arguments.num_fewshot is not None and arguments.num_fewshot < 0:
        raise UserError(f"--num-fewshot {arguments.num_fewshot}: give 0 or more")
    out = _out(arguments)
    check_replaceable(out, COMMAND, arguments.overwrite)
    if own:
        require("plot", f"the task {own[0]}")
    if own and not others:
        _check_no_harness(arguments)
        files, needed, chosen = None, None, None
    else:
        require("eval", "evaluation")
        chosen = select(others, arguments.include_path)
        needed = chosen if not lengths else chosen.also(WIKITEXT)
        files = _documents(arguments, needed)
    models = _open(arguments, lengths)
    notes = long_texts.read(models)
    with replaceable_folder(out, COMMAND, arguments.overwrite) as folder:
        with TemporaryDirectory(prefix="deconattn-evaluation-") as cache:
            loaded = Loaded() if needed is None else load(needed, files, Path(cache), arguments.num_fewshot)
            check_generation(loaded.tasks, models)
            if changed and all(task.OUTPUT_TYPE == UNPERTURBED for task in loaded.tasks.values()):
                raise UserError("--perturb: these tasks score whole texts, without a context before: leave it out")
            notes += loaded.notes
            for note in notes:
                print(note, file=sys.stderr)
            wikitext = {WIKITEXT: loaded.tasks[WIKITEXT]} if lengths else {}
            if chosen is not None and WIKITEXT not in chosen.names and WIKITEXT in wikitext:
                del loaded.tasks[WIKITEXT]
            scored = _score(arguments, models, loaded, wikitext, lengths, changed, long_texts)
        long_texts.draw(scored.long_texts, models, folder)
        _write(arguments, scored, lengths, changed, notes, folder, long_texts)
    print(f"written: {out / RESULTS}, {out / TABLES}", file=sys.stderr)
    if arguments.wandb_project:
        from deconattn.evaluation.results import log_to_wandb

        for row, entry in zip(scored.rows, scored.entries, strict=True):
            log_to_wandb(arguments.wandb_project, row, entry["model"], entry["context_perplexities"])


def _check_no_harness(arguments: Arguments) -> None:
    """Raise UserError for a flag of the harness's tasks where none is asked for."""
    for name in ("include_path", "num_fewshot", "perturb", "datasets", "limit", "context_lengths"):
        if getattr(arguments, name) != getattr(Arguments(models=()), name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} goes with tasks of the harness: name one with --tasks, or leave it out")


def _documents(arguments: Arguments, needed: Selection) -> dict[str, Path] | None:
    """Files of the documents by task, where `--datasets` has them."""
    if arguments.datasets is None:
        return None
    if arguments.num_fewshot and needed.benchmarks:
        raise UserError(
            f"--num-fewshot {arguments.num_fewshot}: --datasets has no documents to show but those that are "
            "scored: leave --datasets out, and shots come from the hub"
        )
    files = data_files(arguments.datasets, needed.benchmarks)
    harness.without_network()
    return files


@dataclass
class _Scored:
    """Row and results.json entry of each model; `chance` are the rows that need no model."""

    rows: list[Row]
    entries: list[dict[str, Any]]
    chance: list[Row]
    long_texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What our own tasks found, by model and task."""


def _score(
    arguments: Arguments,
    models: "list[StoredModel]",
    loaded: Loaded,
    wikitext: harness.Tasks,
    lengths: list[int],
    changed: list[Perturbation],
    long_texts: LongTexts,
) -> _Scored:
    from deconattn.evaluation.chance import chance_rows

    scored = _Scored([], [], [])
    for number, (stored, label) in enumerate(zip(models, unique_labels(models), strict=True)):
        print(f"{stored.label}: {', '.join([*long_texts.tasks, *loaded.tasks])}", file=sys.stderr)
        model = stored.load(arguments.dtype)
        of_long_texts = long_texts.score(number, stored, model, arguments.batch_size)
        scored.long_texts[label] = of_long_texts
        common: dict[str, Any] = {"batch_size": arguments.batch_size, "limit": arguments.limit}
        found: dict[str, Any] = {"results": {}}
        if loaded.tasks:
            found = harness.score(
                model, stored.tokenizer, loaded.tasks, groups=loaded.groups, samples=bool(changed), **common
            )
        perturbed = {}
        for one in changed:
            print(f"{stored.label}: {one.label}", file=sys.stderr)
            perturbed[one.label] = _perturbed(one, stored, model, loaded, found, common)
        found.pop("samples", None)
        perplexities = {}
        for length in lengths:
            print(f"{stored.label}: WikiText, context of {length} tokens", file=sys.stderr)
            at_length = harness.score(model, stored.tokenizer, wikitext, max_length=length, **common)
            perplexities[length] = float(at_length["results"][WIKITEXT]["word_perplexity,none"])
        row = row_of(stored.label, found)
        scored.rows.append(Row(row.label, row.scores | long_texts.scores(of_long_texts)))
        description = {
            "label": stored.label,
            **_origin(stored),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }
        entry = {"model": description, "context_perplexities": perplexities, "harness": found, **of_long_texts}
        scored.entries.append(entry | ({"perturbed": perturbed} if changed else {}))
        if not scored.chance and set(loaded.tasks) & set(BENCHMARKS):
            scored.chance = chance_rows(loaded.tasks, model, stored.tokenizer, arguments.limit)
        del model
    return scored


def _perturbed(
    one: Perturbation,
    stored: "StoredModel",
    model: "PreTrainedModel",
    loaded: Loaded,
    clean: dict[str, Any],
    common: dict[str, Any],
) -> dict[str, Any]:
    """Score the tasks that have a context with it perturbed; scores, and what they are less the clean ones."""
    tasks = {name: task for name, task in loaded.tasks.items() if task.OUTPUT_TYPE != UNPERTURBED}
    perturb = partial(one, tokenizer=stored.tokenizer)
    found = harness.score(model, stored.tokenizer, tasks, perturb=perturb, samples=True, **common)
    scores = row_of(stored.label, found).scores
    return {
        "kind": one.kind,
        "share": one.share,
        "seed": SEED,
        "scores": as_numbers(Row("", scores)),
        "changes": as_numbers(Row("", changes(clean, found, tasks))),
    }


def _origin(stored: "StoredModel") -> dict[str, Any]:
    """Where a model comes from: path, layers left out, and of a run the step and the tokens that it has seen."""
    origin: dict[str, Any] = {"path": str(stored.path), "skipped_layers": sorted(stored.skipped)}
    if stored.checkpoint is not None:
        flags, step = stored.checkpoint.flags, stored.checkpoint.step
        origin |= {"step": step, "tokens": flags.plan.tokens(step)}
    return origin


def _write(
    arguments: Arguments,
    scored: _Scored,
    lengths: list[int],
    changed: list[Perturbation],
    notes: list[str],
    folder: Path,
    long_texts: LongTexts,
) -> None:
    rows, first = [*scored.rows, *scored.chance], scored.entries[0]["harness"]
    mark = "" if arguments.limit is None else f" (first {arguments.limit} documents of a task: not comparable)"
    tables, tall = [], set[str]()
    if set(first["results"]) & set(BENCHMARKS):
        tables.append((f"{shots_title(first)}{mark}", benchmark_cells(rows)))
    if set(first["results"]) - set(BENCHMARKS):
        tall.add(f"Other tasks{mark}")
        tables.append((f"Other tasks{mark}", other_cells(scored.rows, first)))
    for one in changed:
        entries = [(entry["model"]["label"], entry["perturbed"][one.label]) for entry in scored.entries]
        of_models = [(label, _scores(entry["scores"]), _scores(entry["changes"])) for label, entry in entries]
        tables.append((f"Perturbed: {one.label} (change from the clean score){mark}", perturbed_cells(of_models)))
    if lengths:
        at_lengths = [
            (row.label, list(entry["context_perplexities"].values()))
            for row, entry in zip(scored.rows, scored.entries, strict=True)
        ]
        tables.append((f"WikiText word perplexity by context length{mark}", context_cells(lengths, at_lengths)))
    for title, lines in long_texts.tables(scored.long_texts):
        tall.add(title)
        tables.append((title, [list(column) for column in zip(*lines, strict=True)]))
    for entry, row in zip(scored.entries, scored.rows, strict=True):
        entry["scores"] = as_numbers(row)
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "comparable": arguments.limit is None,
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("models", "sample")}
        | vars(arguments.sample),
        "notes": notes,
        "versions": harness.versions(),
        "models": scored.entries,
        "chance": {row.label: as_numbers(row) for row in scored.chance},
    }
    write_results(folder / RESULTS, content)
    texts = [
        markdown_table(title, list(zip(*cells, strict=True)) if title in tall else cells) for title, cells in tables
    ]
    (folder / TABLES).write_text("\n".join(texts), encoding="utf-8")
    console = Console()
    for table in tables:
        show(console, *table)


def _scores(numbers: dict[str, float]) -> dict[str, Score]:
    """Undo :func:`~deconattn.evaluation.results.as_numbers`, less the average."""
    named = {title: Score(value, numbers.get(f"{title} stderr")) for title, value in numbers.items()}
    return {title: score for title, score in named.items() if not title.endswith(" stderr") and title != AVERAGE}


def _open(arguments: Arguments, lengths: list[int]) -> "list[StoredModel]":
    from deconattn.checkpoint.stored_model import open_model
    from deconattn.checkpoint.without_layers import layer_numbers, variant_layers

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
