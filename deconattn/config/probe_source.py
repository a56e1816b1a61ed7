"""`--data probe:TASK`: samples of a synthetic task in the place of corpora.

What knows the tasks is imported where `--data` names one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deconattn.errors import UserError

if TYPE_CHECKING:
    from deconattn.config.flags import TrainingFlags
    from deconattn.probes import Task

PREFIX = "probe:"


def is_probe(arguments: Sequence[str]) -> bool:
    """Whether any argument of `--data` names a task."""
    return any(argument.startswith(PREFIX) for argument in arguments)


def named_task(arguments: Sequence[str]) -> "Task | None":
    """Return the task that `--data` names, whose plugin must have been loaded; None where it names corpora.

    Raises:
        UserError: no such task, or it does not stand alone.
    """
    if not is_probe(arguments):
        return None
    if len(arguments) > 1:
        named = next(argument for argument in arguments if is_probe([argument]))
        raise UserError(f"--data {named} stands alone: leave the others out")
    from deconattn.probes import parse_task

    return parse_task(arguments[0].removeprefix(PREFIX))


def check_probe(flags: "TrainingFlags") -> None:
    """Check that what else the flags say of the data goes with a task.

    Raises:
        UserError: it does not.
    """
    data = flags.data
    for stretch in flags.plan.stretches[1:]:
        if is_probe(stretch.data) and stretch.stream:
            raise UserError(
                f"--phase {stretch.first}: a probe is the data of a whole run, in one length: leave data= and "
                "seq_len= out"
            )
    task = named_task(data.data)
    if task is None:
        return
    if data.seq_len != task.length:
        raise UserError(f"--seq-len {data.seq_len}: samples of {data.data[0]} have {task.length} tokens: leave it out")
    text = (data.doc_mask, data.fixed_text is not None, data.packing != "concat", bool(flags.evaluation.eval_tasks))
    for flag, given in zip(("--doc-mask", "--fixed-text", "--packing", "--eval-tasks"), text, strict=True):
        if given:
            raise UserError(f"{flag} is of text, and {data.data[0]} has none: leave it out")
