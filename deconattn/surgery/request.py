"""Flags of a measurement and of a search; nothing that PyTorch is needed for, so that `--help` does not wait."""

from dataclasses import dataclass
from pathlib import Path

from deconattn.errors import UserError

PAPER = ("mlp", "approximate", "nonapproximate", "rndemb", "fixedseq", "staticemb")
"""The paper's six variants."""
SHORTEST = 4
"""Tokens of a sequence: as in :mod:`deconattn.analysis.sample`."""


@dataclass(frozen=True)
class Request:
    """What is measured. A folder's table can grow by variants and by heads; the rest stays as it was begun."""

    data: Path | None = None
    """A packed corpus, whose tokenizer the model must have; its validation split if it has enough."""
    text: tuple[str, ...] = ()
    """Text files, folders or quoted patterns in the place of --data, read with the model's tokenizer. Without either,
    the bundled demo corpus."""
    variants: tuple[str, ...] = PAPER
    """Variants to put in each layer's place."""
    heads: bool = False
    """Measure every head by itself, too."""
    seq_len: int = 512
    """Tokens of a sequence."""
    fit_sequences: int = 128
    """Sequences that replacements are fitted on; their hidden states at one layer are in memory together."""
    fit_steps: int = 32
    """Steps of Adam for each replacement, before its output projection is solved for; 0 solves alone."""
    fit_batch: int = 4
    """Sequences of a step."""
    fit_lr: float = 3e-3
    """Peak learning rate; it falls to zero as a cosine."""
    held_out: int = 12
    """Other sequences, which the table and the search measure the loss on."""
    tested: int = 24
    """Other sequences again, which the found hybrid and the patterns beside it are compared on."""
    seed: int = 0
    """Seed of fresh weights, of the order of sequences and of random patterns."""
    plugin: tuple[Path, ...] = ()
    """Python files that register variants of third parties."""

    def check(self) -> None:
        """Raises UserError for flags that cannot be."""
        if self.data is not None and self.text:
            raise UserError("--data and --text are both given: leave one out")
        if self.seq_len < SHORTEST:
            raise UserError(f"--seq-len {self.seq_len}: give {SHORTEST} or more")
        for name, least in (("fit_sequences", 2), ("fit_batch", 1), ("fit_steps", 0), ("held_out", 2), ("tested", 2)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"--{name.replace('_', '-')} {value}: give {least} or more")
        if self.fit_lr <= 0:
            raise UserError(f"--fit-lr {self.fit_lr:g}: give a positive one")
        if not self.variants:
            raise UserError("--variants names none: give one or more")
        for name in self.variants:
            if self.variants.count(name) > 1:
                raise UserError(f"--variants names {name} {self.variants.count(name)} times: name it once")

    @property
    def sequences(self) -> int:
        """Number of sequences in all."""
        return self.fit_sequences + self.held_out + self.tested


@dataclass(frozen=True)
class Goal:
    """What is searched for; it may differ from one call to the next."""

    keep: int | None = None
    """Layers to keep as they are; the others are replaced."""
    budget: str | None = None
    """In the place of --keep, a share of the model's own cost: flops=0.7 (of a prefill), cache=0.5 (its bytes) or
    decode=0.8 (time of a step), each at --budget-length."""
    budget_length: int = 8192
    """Tokens in the context that a budget is for."""
    budget_rows: int = 1
    """Sequences decoded together, for decode=..."""
    budget_gpu: str = "h100"
    """GPU whose bandwidth and peak decode=... goes by: a100, h100, h200, b200, mi300x."""
    swaps: int = 32
    """Hybrids at most that are measured to improve on the table's."""
    pairs: int = 12
    """Pairs of layers that are replaced together, to see whether increases add up."""
    random: int = 20
    """Random patterns to compare with."""
    exhaustive: int = 64
    """Where there are no more ways than this to keep --keep layers, measure them all."""

    def check(self) -> None:
        """Raises UserError for flags that cannot be."""
        if self.keep is not None and self.budget is not None:
            raise UserError("--keep and --budget are both given: leave one out")
        for name, least in (("swaps", 0), ("pairs", 0), ("random", 0), ("exhaustive", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"--{name} {value}: give {least} or more")
        if self.budget_length < 1 or self.budget_rows < 1:
            name, value = min(("length", self.budget_length), ("rows", self.budget_rows), key=lambda one: one[1])
            raise UserError(f"--budget-{name} {value}: give 1 or more")
