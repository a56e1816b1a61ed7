"""The tasks of our own, which ask what a model makes of long text: `position` and `needle`, on the user's text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconattn.analysis.sample import Sample
from deconattn.errors import UserError
from deconattn.evaluation.results import Score

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from deconattn.checkpoint.stored_model import StoredModel

POSITION, NEEDLE = "position", "needle"
OWN = (POSITION, NEEDLE)
SHORTEST_NEEDLE = 128
"""Tokens of the shortest haystack that is made without being asked for."""
DEPTHS = "0,25,50,75,100"
Cells = list[list[str]]


def split_tasks(words: str) -> tuple[tuple[str, ...], str]:
    """Return which of our own are in a comma-separated list, in order, and the list without them."""
    names = [word.strip() for word in words.split(",")]
    own = tuple(name for name in OWN if name in names)
    return own, ",".join(name for name in names if name and name not in OWN)


class LongTexts:
    """Text, lengths and depths of the tasks that were asked for, and what models make of them.

    Args:
        tasks: of :data:`OWN`.
        needle_lengths: comma-separated tokens; by default the sample's length and its halves.
        needle_depths: comma-separated per cent.

    Raises:
        UserError: flags that cannot be, or go with another task.
    """

    def __init__(self, tasks: Sequence[str], sample: Sample, needle_lengths: str, needle_depths: str) -> None:
        if NEEDLE not in tasks and (needle_lengths or needle_depths != DEPTHS):
            flag = "--needle-lengths" if needle_lengths else "--needle-depths"
            raise UserError(f"{flag} goes with the task needle: add it to --tasks, or leave the flag out")
        if not tasks and sample != Sample():
            raise UserError(
                "--data, --text, --sequences and --seq-len go with the tasks position and needle: add one to --tasks"
            )
        sample.check()
        self.tasks, self._sample = tuple(tasks), sample
        self._lengths = numbers("--needle-lengths", needle_lengths)
        if self._lengths and sample.seq_len is not None and POSITION not in tasks:
            raise UserError("--needle-lengths and --seq-len both say how long haystacks are: leave one out")
        self._depths = _depths(needle_depths)
        self._ids: dict[str, list[Tensor]] = {}

    def read(self, models: Sequence["StoredModel"]) -> list[str]:
        """Read the text for all models, before any is loaded; returns what is worth knowing, a line each.

        Raises:
            UserError: lengths beyond a fixed stream, too little text, or a corpus of another tokenizer.
        """
        from deconattn.analysis.tokens import read_sample, sequence_length

        if POSITION in self.tasks:
            self._ids[POSITION] = read_sample(self._sample, models)
        if NEEDLE in self.tasks:
            for length in self._lengths:
                for stored in models:
                    if stored.longest is not None and length > stored.longest:
                        raise UserError(
                            f"--needle-lengths {length} is beyond the fixed stream of {stored.label}, "
                            f"{stored.longest} tokens: leave it out"
                        )
            if not self._lengths:
                whole = sequence_length(self._sample, models)
                halves = [whole >> times for times in range(whole.bit_length())]
                self._lengths = sorted(length for length in halves if length >= SHORTEST_NEEDLE or length == whole)
            self._ids[NEEDLE] = read_sample(replace(self._sample, seq_len=self._lengths[-1]), models)
        return self._notes(models)

    def _notes(self, models: Sequence["StoredModel"]) -> list[str]:
        notes = []
        longest = max(ids[0].shape[1] for ids in self._ids.values()) if self._ids else 0
        for stored in models:
            own = made_for(stored)
            if own is not None and own < longest:
                notes.append(f"{stored.label} was made for {own} tokens, and is scored at {longest}")
        ids = self._ids.get(POSITION, [])
        others = [stored.label for stored, theirs in zip(models, ids, strict=False) if not theirs.equal(ids[0])]
        if others:
            notes.append(
                f"{', '.join(others)}: another tokenizer than {models[0].label}'s, perplexities of its tokens are not "
                "comparable"
            )
        return notes

    def score(
        self, number: int, stored: "StoredModel", model: "PreTrainedModel", batch_size: int | None
    ) -> dict[str, Any]:
        """Score a loaded model, by its number among those that the text was read for: its entry by task."""
        from deconattn.evaluation.logits import LogitReader
        from deconattn.evaluation.needle import needle_numbers, score_needles
        from deconattn.evaluation.position import position_losses, position_numbers

        found: dict[str, Any] = {}
        for task, every in self._ids.items():
            ids = every[number]
            reader = LogitReader(stored, model, ids.shape[1], batch_size)
            if task == POSITION:
                numbers = position_numbers(position_losses(reader, ids, stored.label))
            else:
                cells = score_needles(reader, stored.tokenizer, ids, self._lengths, self._depths, stored.label)
                numbers = needle_numbers(cells)
            count, length = ids.shape
            found[task] = {"text": self._sample.source, "sequences": count, "seq_len": length, **numbers}
        return found

    def scores(self, entry: dict[str, Any]) -> dict[str, Score]:
        """Return a model's figures by title, beside those of the harness's tasks."""
        scores = {}
        if POSITION in entry:
            scores["Text ppl"] = Score(entry[POSITION]["perplexity"]["value"])
        if NEEDLE in entry:
            scores["Needle acc"] = Score(entry[NEEDLE]["accuracy"])
        return scores

    def tables(self, entries: dict[str, dict[str, Any]]) -> list[tuple[str, Cells]]:
        """Title and rows of each task's table; entries of all models by label."""
        from deconattn.evaluation.needle import needle_cells
        from deconattn.evaluation.position import position_cells

        tables = []
        for task, cells_of in ((POSITION, position_cells), (NEEDLE, needle_cells)):
            if task in self.tasks:
                of_task = [(label, entry[task]) for label, entry in entries.items()]
                first = of_task[0][1]
                title = "Perplexity by position, with 95 % intervals over sequences"
                if task == NEEDLE:
                    title = f"Needle in a haystack, right answers in per cent (guessing: {100 * first['chance']:.0f})"
                title += f": {first['sequences']} sequences of {first['text']}"
                tables.append((title, cells_of(of_task)))
        return tables

    def draw(self, entries: dict[str, dict[str, Any]], models: Sequence["StoredModel"], folder: Path) -> None:
        """Write position and needle as .svg and .png; entries by label, in the models' order."""
        from deconattn.evaluation import pictures

        if POSITION in self.tasks:
            variants = {
                label: getattr(stored.config, "layer_variants", None) or ("standard",)
                for label, stored in zip(entries, models, strict=True)
            }
            lengths = {label: made_for(stored) for label, stored in zip(entries, models, strict=True)}
            of_task = {label: entry[POSITION] for label, entry in entries.items()}
            figure = pictures.perplexity_by_position(of_task, pictures.looks(variants), lengths)
            pictures.write_picture(figure, folder / POSITION)
        if NEEDLE in self.tasks:
            figure = pictures.needle_grid({label: entry[NEEDLE] for label, entry in entries.items()})
            pictures.write_picture(figure, folder / NEEDLE)


def made_for(stored: "StoredModel") -> int | None:
    """Return the longest sequence that a model says it is made for."""
    length: int | None = getattr(stored.config, "max_position_embeddings", None)
    return length


def unique_labels(models: Sequence["StoredModel"]) -> list[str]:
    """Labels of models, with their place where two have the same."""
    labels = [stored.label for stored in models]
    return [label if labels.count(label) == 1 else f"{label} ({place})" for place, label in enumerate(labels, start=1)]


def numbers(flag: str, text: str) -> list[int]:
    """Read comma-separated numbers of tokens, in order, each once.

    Raises:
        UserError: naming the word that is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise UserError(f"{flag} {text}: {word!r} is no number of tokens; give some such as 128,256,512")
    return sorted({int(word) for word in words})


def _depths(text: str) -> list[float]:
    depths = []
    for word in (word.strip() for word in text.split(",")):
        try:
            depths.append(float(word))
        except ValueError:
            depths.append(-1.0)
        if not 0 <= depths[-1] <= 100:
            raise UserError(
                f"--needle-depths {text}: {word!r} is no depth in per cent, 0 to 100: give some such as 0,50"
            )
    return sorted(set(depths))
