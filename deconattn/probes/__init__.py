"""Probes: synthetic tasks that tell mechanisms apart in minutes, a file each.

:mod:`.task` has their contract and the registry. Every task is a function of a seed and an index, so that it is a
source of samples as a corpus is one.
"""

from deconattn.probes import (  # noqa: F401  each registers its task
    compress,
    copying,
    fuzzy_recall,
    induction,
    memorise,
    mqar,
    needle,
    parity,
    positional_recall,
    previous_token,
    s5,
    selective_copy,
)
from deconattn.probes.task import (
    Part,
    Row,
    Task,
    nothing_asked,
    parse_task,
    register_task,
    stream,
    task_class,
    task_names,
)

__all__ = ["Part", "Row", "Task", "nothing_asked", "parse_task", "register_task", "stream", "task_class", "task_names"]
