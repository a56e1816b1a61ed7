"""Schedule of the learning rate: a function of the step alone."""

import math
from dataclasses import dataclass

from deconattn.config.flag_groups import LrSchedule
from deconattn.config.flags import TrainingFlags
from deconattn.config.steps import first_difference
from deconattn.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Learning rate of every optimiser step; all of them begin with a linear warm-up.

    Attributes:
        kind: `cosine` is half a cosine to the lowest rate (paper, table 9, with 0), `linear` a line to it, `constant`
            the peak, `wsd` the peak and a line to the lowest at the end.
        decay_steps: length of that line; it begins after the warm-up at the earliest.
        min_ratio: share of the peak that the rate falls to.
        peaks: other peaks, each with the step that it counts from.
    """

    kind: LrSchedule
    peak: float
    warmup_steps: int
    total_steps: int
    decay_steps: int
    min_ratio: float = 0.0
    peaks: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, flags: TrainingFlags) -> "Schedule":
        optimization, total, warmup = flags.optimization, flags.total_steps, flags.warmup_steps
        decaying = total if optimization.lr_schedule == "linear" else flags.decay_steps
        decay_steps = max(1, min(decaying, total - warmup))
        return cls(
            optimization.lr_schedule,
            optimization.lr,
            warmup,
            total,
            decay_steps,
            optimization.lr_min_ratio,
            tuple((phase.step, phase.lr) for phase in flags.plan.phases if phase.lr is not None),
        )

    def rate(self, step: int) -> float:
        """Return the rate of optimiser step `step`, from 0."""
        peak = next((peak for first, peak in reversed(self.peaks) if first <= step), self.peak)
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        return peak * (self.min_ratio + (1 - self.min_ratio) * self._height(step))

    def _height(self, step: int) -> float:
        """Return the place between the lowest rate, 0, and the peak, 1, after the warm-up."""
        if self.kind == "cosine":
            progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if self.kind == "constant":
            return 1.0
        return max(0.0, min(1.0, (self.total_steps - step) / self.decay_steps))


def check_length(flags: TrainingFlags, reached: int) -> None:
    """Raise UserError if a run that has reached a step is to end before it."""
    if flags.total_steps < reached:
        length = "--steps" if flags.optimization.tokens is None else "--tokens"
        raise UserError(
            f"{length} ends the run at step {flags.total_steps}, but it has reached step {reached}: give more, "
            "leave it out, or start a new run with another --save"
        )


def check_steps(before: TrainingFlags, now: TrainingFlags, reached: int) -> None:
    """Raise UserError if a resumed run would have read other samples than it has."""
    step = first_difference(before.plan, now.plan, reached)
    if step is not None:
        raise UserError(
            f"--resume: the run is at step {reached}, and --phase or --batch-warmup-start and -steps change what step "
            f"{step + 1} took: leave them as they were (a phase may be taken away, or begin, from step {reached} on)"
        )


def _shown(peaks: tuple[tuple[int, float], ...]) -> str:
    return " ".join(f"{peak:g} from step {first + 1}" for first, peak in peaks) or "none"


def schedule_change(before: TrainingFlags, now: TrainingFlags, step: int) -> str | None:
    """Say in one line how a resumed run's schedule differs from the one it had; None if it does not.

    Args:
        step: steps done; the rate of the next one is told by both schedules, and where the old one had ended, that of
            its last step.
    """
    old, new = Schedule.of(before), Schedule.of(now)
    if old == new:
        return None
    told = {
        "--steps": (old.total_steps, new.total_steps),
        "--lr": (old.peak, new.peak),
        "--warmup-steps": (old.warmup_steps, new.warmup_steps),
        "--lr-schedule": (old.kind, new.kind),
        "lr of --phase": (_shown(old.peaks), _shown(new.peaks)),
        "--lr-min-ratio": (old.min_ratio, new.min_ratio),
        "steps of decay": (old.decay_steps, new.decay_steps) if {old.kind, new.kind} == {"wsd"} else (0, 0),
    }
    changes = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in told.items() if was != now)
    ended = step >= old.total_steps
    was, now_rate = old.rate(min(step, old.total_steps - 1)), new.rate(step)
    line = f"--resume changes the schedule ({changes}): the learning rate of step {step + 1} "
    if ended:
        line += f"goes from {was:.2g}, where the run had ended, to {now_rate:.2g}"
    else:
        line += f"is {now_rate:.2g} instead of {was:.2g}"
    if now_rate > was:
        line += "; --lr-schedule constant with an --lr of your choice has no such jump"
    return line
