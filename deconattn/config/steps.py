"""Plan of a run's steps: what each takes, a function of the flags and the step alone."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deconattn.config.phases import Phase, parse_phases
from deconattn.errors import UserError

if TYPE_CHECKING:
    from deconattn.config.flags import TrainingFlags


@dataclass(frozen=True)
class Stretch:
    """Steps in a row that take alike.

    Attributes:
        first: the first of them, from 0.
        phase: number of the phase, 0 before the first.
        stream: number of the stream that samples are read from, a new one with other data or another length.
        data: its corpora.
        batch: sequences in a step, over all ranks.
        micro: sequences in one forward pass of one rank.
        lr: peak learning rate.
        samples: read before `first`, of all streams.
        tokens: trained on before `first`.
    """

    first: int
    phase: int
    stream: int
    data: tuple[str, ...]
    seq_len: int
    batch: int
    micro: int
    lr: float
    samples: int = 0
    tokens: int = 0

    def after(self, step: int) -> "Stretch":
        """Return the same from `step` on, what was read before counted."""
        steps = step - self.first
        samples = self.samples + steps * self.batch
        return replace(self, first=step, samples=samples, tokens=self.tokens + steps * self.batch * self.seq_len)

    def micro_batches(self, data_parallel_size: int) -> int:
        """Return how many a rank computes in a step."""
        return self.batch // (self.micro * data_parallel_size)


@dataclass(frozen=True)
class StepPlan:
    """Stretches of a run, in order; the last has no end.

    Attributes:
        phases: that begin within it.
    """

    stretches: tuple[Stretch, ...]
    phases: tuple[Phase, ...] = ()

    @classmethod
    def of(cls, flags: "TrainingFlags") -> "StepPlan":
        """Return the plan of flags.

        Raises:
            UserError: a phase that makes no sense, or begins before the batch has warmed up.
        """
        phases = parse_phases(flags.data.phase)
        optimization = flags.optimization
        warm = optimization.batch_warmup_steps
        if phases and phases[0].step < warm:
            raise UserError(
                f"--phase {phases[0].step} begins within --batch-warmup-steps {warm}: let it begin later, or end the "
                "warm-up earlier"
            )
        stretches = list(_warm_up(flags))
        for number, phase in enumerate(phases, start=1):
            before = stretches[-1]
            data, seq_len = phase.data or before.data, phase.seq_len or before.seq_len
            another = (data, seq_len) != (before.data, before.seq_len)
            stretches.append(
                replace(
                    before.after(phase.step),
                    phase=number,
                    stream=before.stream + another,
                    data=data,
                    seq_len=seq_len,
                    batch=phase.global_batch_size or before.batch,
                    micro=phase.micro_batch_size or before.micro,
                    lr=phase.lr or before.lr,
                )
            )
        return cls(tuple(stretches), phases)

    def at(self, step: int) -> Stretch:
        """Return the stretch that a step, from 0, is in."""
        return self.stretches[bisect_right([stretch.first for stretch in self.stretches], step) - 1]

    def before(self, step: int) -> Stretch:
        """Return the stretch of a step with all counted that was read before this very step."""
        return self.at(step).after(step)

    def tokens(self, steps: int) -> int:
        """Return the tokens that so many steps have trained on."""
        return self.at(max(0, steps - 1)).after(steps).tokens

    def steps_for(self, tokens: int) -> int:
        """Return the least steps that train on so many tokens."""
        begun = [stretch.tokens for stretch in self.stretches]
        stretch = self.stretches[max(0, bisect_right(begun, tokens - 1) - 1)]
        return stretch.first + math.ceil((tokens - stretch.tokens) / (stretch.batch * stretch.seq_len))

    @property
    def longest(self) -> int:
        """Length of its longest sequences, which the model is made for."""
        return max(stretch.seq_len for stretch in self.stretches)

    @property
    def heaviest(self) -> Stretch:
        """The stretch whose micro-batches have most tokens."""
        return max(self.stretches, key=lambda stretch: (stretch.micro * stretch.seq_len, stretch.batch))


def first_difference(before: StepPlan, now: StepPlan, steps: int) -> int | None:
    """Return the first of `steps` steps, from 0, that two plans read other samples in; None if they read the same."""

    def read(stretch: Stretch) -> tuple[object, ...]:
        return stretch.stream, stretch.seq_len, stretch.batch

    edges = {stretch.first for plan in (before, now) for stretch in plan.stretches if stretch.first < steps}
    return next((step for step in sorted(edges) if read(before.at(step)) != read(now.at(step))), None)


def _warm_up(flags: "TrainingFlags") -> Iterator[Stretch]:
    """Yield the stretches of a batch that grows by its first size, in steps of equal numbers."""
    optimization = flags.optimization
    steps, whole = optimization.batch_warmup_steps, optimization.global_batch_size
    start = optimization.batch_warmup_start or whole
    stretch = Stretch(
        first=0,
        phase=0,
        stream=0,
        data=flags.data.data,
        seq_len=flags.data.seq_len,
        batch=whole,
        micro=optimization.micro_batch_size,
        lr=optimization.lr,
    )
    levels = whole // start
    if levels < 2 or steps < 1:
        yield stretch
        return
    stretch = replace(stretch, batch=start)
    for level in range(1, levels + 1):
        first = math.ceil((level - 1) * steps / (levels - 1))
        stretch = replace(stretch.after(first), batch=level * start)
        yield stretch
