"""The tasks that are asked for: any task, group, tag or task file of the lm-evaluation-harness, found and loaded."""

import copy
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconattn.errors import UserError
from deconattn.evaluation.datasets import local_task
from deconattn.evaluation.harness import Tasks, quiet
from deconattn.evaluation.tasks import BENCHMARKS, Benchmark
from deconattn.shown import one_line

if TYPE_CHECKING:
    from deconattn.checkpoint.stored_model import StoredModel

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Selection:
    """What was asked for: names of tasks, groups and tags, and paths of task files, each known to the manager."""

    names: tuple[str, ...]
    manager: Any

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Those of the paper's nine that are asked for by their own names."""
        return [benchmark for name, benchmark in BENCHMARKS.items() if name in self.names]

    def also(self, name: str) -> "Selection":
        """Return the selection with a name of the nine added where it is not there."""
        return self if name in self.names else replace(self, names=(*self.names, name))


@dataclass(frozen=True)
class Loaded:
    """Tasks with their documents, and the groups that they are asked for in.

    Attributes:
        notes: what is not as it was asked for, a line each.
    """

    tasks: Tasks = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def select(words: str, include: Sequence[Path] = ()) -> Selection:
    """Find comma-separated tasks, groups, tags, patterns such as `arc_*`, and task files; the nine for an empty list.

    The harness's fifteen thousand definitions are read only where the nine and what `include` has are not enough.

    Args:
        include: folders of task files, or task files, whose names go before the harness's.

    Raises:
        UserError: what is no task, with names that are near; a folder or file that is none.
    """
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    if not wanted and not include:
        return Selection(tuple(BENCHMARKS), nine())
    folders = []
    for path in include:
        if not path.is_dir():
            raise UserError(f"--include-path {path} is no folder: give the folder of the task files, and name --tasks")
        folders.append(str(path))
    if not wanted:
        raise UserError("--include-path adds tasks to choose from: name them with --tasks")
    for word in wanted:
        if word.endswith(SUFFIXES) and not Path(word).is_file():
            raise UserError(f"--tasks: {word}: no such file")
    names = [word for word in wanted if not word.endswith(SUFFIXES)]
    manager = _manager(tuple(folders)) if folders else nine()
    if not all(_is_complete(name, manager) for name in names):
        if sys.stderr.isatty():
            print("reading the definitions of all tasks of the lm-evaluation-harness", file=sys.stderr)
        manager = _manager(tuple(folders), everything=True)
    _check_own_names([Path(word) for word in wanted if word.endswith(SUFFIXES)], manager)
    found: list[str] = []
    for word in wanted:
        if any(sign in word for sign in "*?["):
            matches = manager.match_tasks([word])
            if not matches:
                raise UserError(f"--tasks: no task of the lm-evaluation-harness matches {word!r}")
            found += matches
        elif word.endswith(SUFFIXES) or word in manager.task_index:
            found.append(word)
        else:
            near = difflib.get_close_matches(word, manager.all_tasks, n=5)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
            raise UserError(
                f"--tasks: the lm-evaluation-harness has no task, group or tag {word!r}: {hint}"
                + ("" if folders else " One of yours needs its file, or --include-path FOLDER")
            )
    first = [name for name in BENCHMARKS if name in found]  # in the table's order
    return Selection(tuple(dict.fromkeys([*first, *found])), manager)


def _check_own_names(files: Sequence[Path], manager: Any) -> None:
    """Raises UserError where a task of the user's has the name of one of the nine, whose columns it would get."""
    from lm_eval.tasks._index import TaskIndex

    ours = nine().task_index
    for name in BENCHMARKS:
        path = manager.task_index[name].yaml_path
        if path != ours[name].yaml_path:
            raise UserError(f"{path}: {name} is one of the paper's nine tasks: give yours another name")
    for file in files:
        try:
            entry = TaskIndex.entry_from_path(file)
        except Exception as error:  # whatever its YAML comes to
            reason = one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
            raise UserError(f"--tasks: {file} is no task file ({reason}): correct it") from error
        if entry is None or entry.name in BENCHMARKS:
            what = "it names no task" if entry is None else f"{entry.name} is one of the paper's nine tasks"
            raise UserError(f"--tasks: {file}: {what}: give yours a name of its own")


def load(selection: Selection, files: Mapping[str, Path] | None, cache: Path, num_fewshot: int | None = None) -> Loaded:
    """Load the tasks with their documents.

    Args:
        files: by task, the file of its documents; of others the definition says where they are. None: the hub's.
        cache: a folder for the `datasets` library, for as long as the tasks are used; unused with the hub, whose
            data sets are kept where they always are.
        num_fewshot: shots, but where a task's definition says none; None: as many as its definition says, or none.

    Raises:
        UserError: documents that cannot be loaded, or a task that a language model of text cannot be scored on.
    """
    quiet()
    manager, loaded = copy.copy(selection.manager), Loaded()
    manager._index = {**manager.task_index, **_local(selection, files, cache)}
    for name in selection.names:
        try:
            found = manager.load([name])
        except Exception as error:  # whatever network, hub, task code and JSON reader come up with
            reason = one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
            source = "from the hub: check the network, or give --datasets"
            if files is not None:
                source = str(files.get(name, "and --datasets keeps from the network: give no --datasets"))
            raise UserError(f"the documents of {name} cannot be loaded ({reason}), {source}") from error
        loaded.tasks.update(found["tasks"])
        loaded.groups.update(found["groups"])
    for name, task in loaded.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"{name} runs code that the model writes, which is not done here: use lm_eval itself")
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"{name} shows pictures or sounds, which these models do not take: leave it out")
        loaded.notes.extend(_set_shots(name, task, num_fewshot))
    return loaded


def check_generation(tasks: Tasks, models: "Sequence[StoredModel]") -> None:
    """Raises UserError for a task that asks for more tokens than a model's context has."""
    generating = {name: task for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"}
    if not generating:
        return
    from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

    for stored in models:
        longest = resolve_max_length(stored.config, stored.tokenizer, default=2048)
        for name, task in generating.items():
            tokens = normalize_gen_kwargs(task.get_config("generation_kwargs") or {})["max_gen_toks"]
            if tokens >= longest:
                raise UserError(
                    f"{name} lets a model write {tokens} tokens, and {stored.label} has a context of {longest}: leave "
                    "it out, or lower max_gen_toks in a task file of your own"
                )


def definition_of(task: Benchmark) -> dict[str, Any]:
    """Return the harness's definition of one of the nine: `dataset_path`, `dataset_name`, and so on."""
    from lm_eval.tasks.manager import load_yaml

    return load_yaml(nine().task_index[task.name].yaml_path)


def nine() -> Any:
    """Task manager that knows the nine tasks: reading all the harness's definitions takes half a minute."""
    return _manager()


@cache
def _manager(include: tuple[str, ...] = (), everything: bool = False) -> Any:
    import lm_eval.tasks

    quiet()
    root = Path(lm_eval.tasks.__file__).parent
    folders = [] if everything else sorted({str(root / task.folder) for task in BENCHMARKS.values()})
    return lm_eval.tasks.TaskManager(include_path=[*folders, *include], include_defaults=everything)


def _is_complete(name: str, manager: Any) -> bool:
    """Tell whether the manager knows a name, and the names of all that is in it."""
    from lm_eval.tasks._index import Kind

    entry = manager.task_index.get(name)
    if entry is None or entry.kind is not Kind.GROUP:
        return entry is not None and entry.kind is not Kind.TAG  # others may have the tag
    members = (entry.cfg or {}).get("task") or []
    named = [member if isinstance(member, str) else member.get("group", member.get("task")) for member in members]
    return all(isinstance(member, str) and _is_complete(member, manager) for member in named)


def _local(selection: Selection, files: Mapping[str, Path] | None, cache: Path) -> dict[str, Any]:
    """Entries of the harness's index in which the nine take their documents from files."""
    from lm_eval.tasks._index import Entry, Kind

    entries = {}
    for name, path in (files or {}).items():
        known = selection.manager.task_index.get(name)
        if known is not None:
            config = {**definition_of(BENCHMARKS[name]), **local_task(BENCHMARKS[name], path, cache)}
            entries[name] = Entry(name, Kind.TASK, None, config, known.tags)
    return entries


def _set_shots(name: str, task: Any, wanted: int | None) -> list[str]:
    """Set a task's number of shots, as the harness's own command does; say where it is not the wanted one."""
    own = task.get_config("num_fewshot")
    if wanted is None:
        if own is None:
            task.set_config("num_fewshot", 0)
        return []
    if own == 0:
        return [f"{name}: its definition says 0 shots, which the harness never overrides"] if wanted else []
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        task.set_config("num_fewshot", 0)
        return [f"{name}: whole texts are scored, without shots"] if wanted else []
    task.set_config("num_fewshot", wanted)
    config = getattr(task, "fewshot_cfg", None)
    given = config is not None and (config.split is not None or config.samples is not None)
    if (
        wanted
        and not given
        and not task.has_training_docs()
        and not (task.has_validation_docs() and task.has_test_docs())
    ):
        return [f"{name}: the harness draws its shots from the documents that are scored, there being no others"]
    return []
