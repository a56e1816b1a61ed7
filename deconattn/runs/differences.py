"""What tells runs apart: settings that differ, labels made of them, colours, and groups that differ by seed alone."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deconattn.config.pattern import STANDARD
from deconattn.config.presets import SIZES, size_defaults
from deconattn.pages.palette import COLOURS
from deconattn.runs.run import Run

SEED = "seed"
_OF_RUN = ("eval_sequences",)
"""What of the flags about run folders changes a result."""
_NOT_COMPARED = ("data", "plugin", "eval_datasets", "tokens", "loader_workers", "distributed_timeout_minutes")
"""Flags for which others stand here, or that change nothing but speed."""


@dataclass(frozen=True)
class Corpus:
    """A corpus, the same as another with its content."""

    name: str = dataclasses.field(compare=False)
    weight: float
    content: str


def settings(run: Run) -> dict[str, Any]:
    """Return what a run was trained with, by names of flags; empty where its configuration cannot be read.

    What flags leave to defaults is resolved, and corpora, plugins and the base model are by content, not by path.
    """
    config = run.config
    if config is None:
        return {}
    flags = config.flags
    found: dict[str, Any] = {}
    for group in dataclasses.fields(flags):
        values = vars(getattr(flags, group.name))
        names = _OF_RUN if group.name == "run" else [name for name in values if name not in _NOT_COMPARED]
        found |= {name: values[name] for name in names}
    if flags.model.variant == STANDARD:
        found["pattern"] = ""  # one pattern is as good as another
    corpora = [Corpus(one.path.rpartition("/")[2], one.weight, one.content) for one in config.data]
    found |= {name: value for name, value in vars(config.model).items() if name in found}
    found |= {"steps": run.total_steps, "warmup_steps": flags.warmup_steps, "data": tuple(corpora)}
    return found | {"plugin": tuple(config.plugin_code.items()), "base_model": config.base_model}


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all runs, each with its values; what a size brings is not named.

    Runs whose configuration cannot be read have None, and count for nothing.
    """
    each = [settings(run) for run in runs]
    first: dict[str, Any] = next((one for one in each if one), {})
    found = {
        name: [one.get(name) for one in each] for name in first if any(one and one[name] != first[name] for one in each)
    }
    if "size" in found:
        brought = [_brought(size) for size in found["size"]]
        found = {
            name: values
            for name, values in found.items()
            if any(name not in of or of[name] != value for of, value in zip(brought, values, strict=True))
        }
    return found


def shown(name: str, value: Any) -> str:
    """Show a setting's value."""
    if name == "data":
        return " + ".join(one.name if one.weight == 1 else f"{one.name}:{one.weight:g}" for one in value or ())
    if name == "plugin":
        return ", ".join(f"{variant} {digest[:8]}" for variant, digest in value or ()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def labels_of(runs: Sequence[Run], without: Sequence[str] = ()) -> list[str]:
    """Return a label for each run: what differs, and the name where that does not tell.

    Args:
        without: settings that are left out.
    """
    found = {name: values for name, values in differing(runs).items() if name not in without}
    labels = []
    for place in range(len(runs)):
        words = [
            shown(name, values[place]) if name in ("size", "variant", "pattern") else _worded(name, values[place])
            for name, values in found.items()
        ]
        labels.append(", ".join(word for word in words if word) if runs[place].config else "")
    return [
        label if label and labels.count(label) == 1 else ", ".join(filter(None, (run.name, label)))
        for run, label in zip(runs, labels, strict=True)
    ]


def colours_of(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """Return for each run whose variant's colour it has, and the number of its dash: its own variant's, unless all
    runs would have one colour."""
    keys = [_colour_key(run) for run in runs]
    if len(set(keys)) == 1:
        keys = [list(COLOURS)[place % len(COLOURS)] for place in range(len(runs))]
    return [(key, keys[:place].count(key)) for place, key in enumerate(keys)]


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seeds alone, by seed.

    Attributes:
        apart: runs that are in no mean, see :func:`groups_of`.
    """

    label: str
    runs: dict[int, Run]
    apart: tuple[Run, ...] = ()

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))


def groups_of(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Group runs, in the order in which they are given.

    Apart stand runs of a seed that another has, which are no news of the spread, and those that have not come as far as
    the others, whose results are of other steps.

    Returns:
        The groups, and a sentence on each run that stands apart.
    """
    members: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        own = {name: value for name, value in settings(run).items() if name != SEED}
        kept = next((one for others, one in members if others == own and own), None)
        if kept is None:
            members.append((own, [run]))
        else:
            kept.append(run)
    parts, notes = [], list[str]()
    for _, together in members:
        reached = {run.name: run.steps[-1]["step"] if run.steps else 0 for run in together}
        furthest = max(reached.values())
        by_seed: dict[int, Run] = {}
        apart = []
        for run in together:
            seed = settings(run).get(SEED, 0)
            if reached[run.name] < furthest:
                notes.append(
                    f"{run.name} is at step {reached[run.name]}, others of its group at {furthest}: it is in no mean."
                )
            elif seed in by_seed:
                notes.append(f"{run.name} has the settings and the seed of {by_seed[seed].name}: it is in no mean.")
            else:
                by_seed[seed] = run
                continue
            apart.append(run)
        parts.append((by_seed, tuple(apart)))
    firsts = [next(iter(by_seed.values())) for by_seed, _ in parts]
    labels = labels_of(firsts, without=(SEED,)) if len(firsts) > 1 else [_whole_label(firsts[0])]
    return [Group(label, *part) for label, part in zip(labels, parts, strict=True)], notes


def _whole_label(run: Run) -> str:
    """Label a run that stands alone."""
    own = settings(run)
    return " ".join(str(own[name]) for name in ("size", "variant", "pattern") if own.get(name)) or run.name


def _worded(name: str, value: Any) -> str:
    return f"{name.replace('_', ' ')} {shown(name, value)}"


def _brought(size: Any) -> dict[str, Any]:
    """Return what a preset sets, resolved as a run's settings are; empty where there is no such size."""
    if size not in SIZES:
        return {}
    flags = size_defaults(size)
    model = flags.model
    heads = model.num_key_value_heads or model.num_attention_heads
    found = {**vars(model), **vars(flags.data), **vars(flags.optimization), **vars(flags.run)}
    found |= {"head_dim": model.hidden_size // model.num_attention_heads, "num_key_value_heads": heads}
    own = {name for name in vars(SIZES[size]) if name != "qwen3"}
    own |= {"head_dim", "num_key_value_heads", "attention_bias", "qk_norm", "warmup_steps"}
    return {name: found[name] for name in own if name in found} | {"warmup_steps": flags.warmup_steps}


def _colour_key(run: Run) -> str:
    if run.config is None:
        return ""
    others = sorted(set(run.config.model.layer_variants) - {STANDARD}) or [STANDARD]
    return others[0] if len(others) == 1 else "several"
