"""A stored model that is to be evaluated, and what the results say of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deconattn.checkpoint.format import open_checkpoint
from deconattn.checkpoint.kinds import kind_of
from deconattn.checkpoint.stored_model import Precision, StoredModel, open_model
from deconattn.errors import UserError
from deconattn.evaluation.skip import check_skip, variant_layers, without_layers


@dataclass(frozen=True)
class Subject:
    """A model of which all is known but its weights.

    Attributes:
        label: its name in tables.
        description: path, skipped layers and, of a run, `step` and the `tokens` that it has been trained on.
    """

    label: str
    description: dict[str, Any]
    skipped: frozenset[int]
    _stored: StoredModel

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._stored.tokenizer

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Raises UserError for a context that is longer than the model's fixed stream."""
        longest = self._stored.longest
        for length in lengths:
            if longest is not None and length > longest:
                raise UserError(
                    f"--context-lengths {length} is beyond the fixed stream of {self.label}, {longest} tokens: "
                    "leave it out"
                )

    def load(self, precision: Precision | None) -> PreTrainedModel:
        """The model, less the layers that are skipped."""
        model = self._stored.load(precision)
        return without_layers(model, self.skipped) if self.skipped else model


def open_subject(
    path: Path, plugins: Sequence[Path] = (), skip: frozenset[int] = frozenset(), skip_variants: bool = False
) -> Subject:
    """Find out what `path` is and check it.

    Args:
        path: a Hugging Face folder, a run folder or a step-N folder.
        skip: layers to leave out, numbers from 1.
        skip_variants: leave out all layers that are not standard, too.

    Raises:
        UserError: it is none of these, lacks its tokenizer, or cannot do without the layers.
    """
    stored = open_model(path, plugins)
    resolved = path.resolve()
    label = f"{resolved.parents[1].name}/{resolved.name}" if resolved.name.startswith("step-") else resolved.name
    skipped = skip | variant_layers(stored.config) if skip_variants else skip
    if skip or skip_variants:
        check_skip(stored.config, skipped, label)
        label += f", skip {','.join(str(number) for number in sorted(skipped))}"
    description: dict[str, Any] = {"path": str(path), "skipped_layers": sorted(skipped)}
    if kind_of(path) == "checkpoint":
        checkpoint = open_checkpoint(path)
        flags = checkpoint.flags
        tokens = checkpoint.step * flags.optimization.global_batch_size * flags.data.seq_len
        description |= {"step": checkpoint.step, "tokens": tokens}
    return Subject(label, description, skipped, stored)
