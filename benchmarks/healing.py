"""Healing with and without a teacher: the same start, the same tokens in the same order, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/healing.py --data PACKED --out runs/healing

trains a standard model, the teacher, and makes a hybrid of it: some layers have new mixers. Each way of healing begins
with the same weights and takes the same tokens; each gets the learning rate that is best for it on the first seed, of
`--lrs`, and is then run with every seed, which decides the new layers' initial weights and the order of the data. What
it recovers is the share of the gap between the start's loss and the teacher's. Finished runs are skipped, interrupted
ones go on. The table goes to `results/healing.md`, with the losses of all runs in `results/healing.json`.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, command, describe, markdown_table, write_result
from benchmarks.training.losses import result_of
from deconattn import durable
from deconattn.checkpoint.format import steps_in
from deconattn.cli import parse, run
from deconattn.errors import UserError
from deconattn.statistics import Interval, mean_interval, paired_difference

PLAIN, DISTILLED = "plain", "layer, logits"


@dataclass(frozen=True)
class Arguments:
    """What a teacher is worth in healing a hybrid of a small model."""

    data: Path
    """A packed corpus with a validation split."""
    out: Path = Path("runs/healing")
    """Folder of the run folders."""
    size: str = "tiny"
    """Preset of dimensions."""
    variant: str = "nonapproximate"
    """Variant of the layers that are new."""
    pattern: str = "1:1"
    """Which layers stay standard."""
    teacher_steps: int = 2000
    """Steps of the teacher's training."""
    teacher_lr: float = 3e-3
    """Its peak learning rate."""
    steps: int = 300
    """Steps of healing."""
    layer_steps: int = 100
    """Of these, the ones of the objective layer, where there is one; as many train only what is new, where that is."""
    global_batch_size: int = 8
    """Sequences a step."""
    micro_batch_size: int = 8
    """Sequences in a forward pass."""
    seq_len: int = 256
    """Tokens in a sequence."""
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Peak learning rates of healing to choose from."""
    adam_beta2: float = 0.99
    """The paper's 0.9999 is for runs a thousand times longer: its memory would outlast these."""
    seeds: int = 5
    """Seeds of each way."""
    temperature: float = 1.0
    """Temperature of the predictions that are compared."""
    eval_sequences: int = 64
    """Validation sequences."""
    results: Path = RESULTS
    """Folder of the table and of the losses."""

    def flags(self, steps: int, lr: float, seed: int) -> dict[str, object]:
        """Flags that all runs give."""
        return {
            "data": self.data,
            "steps": steps,
            "save-every": steps,
            "eval-every": steps,
            "keep": 1,
            "seq-len": self.seq_len,
            "global-batch-size": self.global_batch_size,
            "micro-batch-size": self.micro_batch_size,
            "lr": lr,
            "adam-beta2": self.adam_beta2,
            "eval-sequences": self.eval_sequences,
            "seed": seed,
        }

    def ways(self, teacher: Path) -> dict[str, dict[str, object]]:
        """Flags of each way of healing, by what the table calls it."""
        taught: dict[str, object] = {"teacher": teacher, "distill-temperature": self.temperature}
        return {
            PLAIN: {},
            f"{PLAIN}, what is new first": {"freeze": f"shared@{self.layer_steps}"},
            "logits": {**taught, "distill": "logits"},
            DISTILLED: {**taught, "distill": f"layer:{self.layer_steps},logits"},
        }


@dataclass(frozen=True)
class Healed:
    """Validation losses of one way, nats, by seed, at the learning rate that was best for it."""

    lr: float
    losses: dict[int, float]


def train(folder: Path, flags: Mapping[str, object], steps: int) -> float:
    """Make a run unless it is there already; returns its validation loss, nats."""
    found = result_of(folder, steps)
    if found is not None:
        return found.val_loss
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    if steps_in(folder):
        words.append("--resume")
    elif folder.exists():  # cut short before its first checkpoint
        shutil.rmtree(folder)
    code = subprocess.run([str(ROOT / "launch.sh"), *words, "--save", str(folder)], check=False).returncode
    found = result_of(folder, steps)
    if code or found is None:
        raise UserError(f"{folder}: launch.sh ended with code {code}; its error is above")
    return found.val_loss


def heal(arguments: Arguments, way: str, extra: Mapping[str, object], start: Mapping[str, object]) -> Healed:
    """Heal by one way: every learning rate on the first seed, the best of them on all."""

    def loss(lr: float, seed: int) -> float:
        name = f"{way.replace(', ', '-').replace(' ', '_')}-{lr:g}-{seed}"
        flags = {**arguments.flags(arguments.steps, lr, seed), **start, **extra}
        return train(arguments.out / name, flags, arguments.steps)

    best = min(arguments.lrs, key=lambda lr: loss(lr, 0))
    return Healed(best, {seed: loss(best, seed) for seed in range(arguments.seeds)})


def recovered(losses: Mapping[int, float], starts: Mapping[int, float], teacher: float) -> Interval:
    """Return the share of each seed's gap that is closed, as a mean with its interval."""
    return mean_interval([(starts[seed] - loss) / (starts[seed] - teacher) for seed, loss in losses.items()])


def shown(interval: Interval | None, scale: float = 1.0, digits: int = 3) -> str:
    """A mean with half its interval."""
    if interval is None:
        return ""
    half = "" if interval.half is None else f" \N{PLUS-MINUS SIGN} {scale * interval.half:.{digits}f}"
    return f"{scale * interval.mean:.{digits}f}{half}"


def table(found: Mapping[str, Healed], starts: Mapping[int, float], teacher: float) -> str:
    """Markdown: losses after healing, and what of the gap is closed."""
    plain = found[PLAIN].losses
    rows = []
    for way, healed in found.items():
        difference = None if way == PLAIN else paired_difference(healed.losses, plain)
        closed = shown(recovered(healed.losses, starts, teacher), 100, 1)
        loss = shown(mean_interval([*healed.losses.values()]))
        rows.append([way, f"{healed.lr:g}", loss, closed, shown(difference)])
    return markdown_table(["healing", "lr", "loss, nats", "of the gap closed, %", "loss less plain's"], rows)


def main() -> None:
    """The teacher, the start of each seed, every way, then the table."""
    arguments = parse(Arguments)
    for folder in (arguments.out, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    teacher = arguments.out / "teacher"
    its_flags = {"size": arguments.size, **arguments.flags(arguments.teacher_steps, arguments.teacher_lr, 1234)}
    its_loss = train(teacher, its_flags, arguments.teacher_steps)
    start = {"init-from": teacher, "variant": arguments.variant, "pattern": arguments.pattern}
    starts = {}
    for seed in range(arguments.seeds):  # a step that moves no weight, for its validation
        still = {**arguments.flags(1, 1e-30, seed), **start}
        starts[seed] = train(arguments.out / f"start-{seed}", still, 1)
    found = {way: heal(arguments, way, extra, start) for way, extra in arguments.ways(teacher).items()}
    tokens = arguments.steps * arguments.global_batch_size * arguments.seq_len
    text = (
        f"# Healing with and without a teacher\n\n`{command()}`\n\n{describe()}. {arguments.size}, "
        f"{arguments.variant} in pattern {arguments.pattern}. The teacher has {its_loss:.3f} nats after "
        f"{arguments.teacher_steps} steps; the hybrid begins with {shown(mean_interval([*starts.values()]))}. Each way "
        f"takes the same {arguments.steps} steps, {tokens:,} tokens; {arguments.seeds} seeds, 95 % intervals over "
        f"them, differences in pairs.\n\n{table(found, starts, its_loss)}"
    )
    print(text)
    durable.write_text(arguments.results / "healing.md", text)
    losses = {way: vars(healed) for way, healed in found.items()}
    write_result(arguments.results / "healing.json", {"teacher": its_loss, "starts": starts, "ways": losses})


if __name__ == "__main__":
    run(main)
