"""The harness's progress bars, drawn as all of ours: the harness asks tqdm for them, and draws them into logs too."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from deconattn.progress import Advance, progress_bar, unseen

MODULES = ("lm_eval.api.model", "lm_eval.api.task", "lm_eval.models.huggingface")
"""Modules of the harness that have a name `tqdm`."""


class Bar:
    """The part of `tqdm.tqdm` that the harness uses, drawn by :func:`~deconattn.progress.progress_bar`."""

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str = "scoring",
        total: int | None = None,
        disable: bool | None = False,
        unit: str = "requests",
        **_: Any,
    ) -> None:
        self._items = iterable
        self._open = ExitStack()
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self._advance: Advance = unseen
        if not disable:
            self._advance = self._open.enter_context(progress_bar(desc, total, unit.strip()))

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._items or ():
                yield item
                self.update(1)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def update(self, done: int = 1) -> None:
        """Count what has been done."""
        self._advance(done)

    def close(self) -> None:
        """Take the bar away."""
        self._open.close()


class NoBar(Bar):
    """None at all: where a training draws its own."""

    def __init__(self, iterable: Iterable[Any] | None = None, *_: Any, **__: Any) -> None:
        super().__init__(iterable, disable=True)


def draw(bars: bool) -> None:
    """Have the harness draw our bars from now on, or none."""
    for module in MODULES:
        if module in sys.modules:
            sys.modules[module].tqdm = Bar if bars else NoBar  # type: ignore[attr-defined]
