"""Which parameters are frozen, and until which step."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from deconattn.config.flags import TrainingFlags
from deconattn.config.healing import NEVER, SHARED, lessons, parse_freeze
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

LAYER_TRAINS = "model.layers.*.self_attn.*"
"""What the objective `layer` trains: the mixers."""


def shared_parameters(config: ModelConfig, origin: Mapping[str, Any]) -> list[str]:
    """Return what a model has in common with the one that its weights began with: what `--freeze shared` means.

    A mixer of another variant is new, also where it began with the weights of the one in its place.

    Args:
        origin: `taken` and `taken_layers` of the run's configuration; empty where it began with none.
    """
    pairs = enumerate(zip(config.layer_variants, origin.get("taken_layers", ()), strict=False))
    new = tuple(f"model.layers.{layer}.self_attn." for layer, (ours, theirs) in pairs if ours != theirs)
    return [name for name in origin.get("taken", ()) if not name.startswith(new)]


def frozen_until(flags: TrainingFlags, names: Sequence[str], shared: Collection[str]) -> dict[str, int]:
    """Return the step until which parameters are frozen, by name, of those that are.

    While `--distill layer` lasts all but the mixers are: it has no gradient for them, and decay alone would be left.
    Of several rules for a parameter the one that lasts longest counts.

    Args:
        names: canonical names of the parameters.
        shared: :func:`shared_parameters`.

    Raises:
        UserError: a pattern that is no parameter's, or nothing is left to train.
    """
    frozen: dict[str, int] = {}

    def freeze(found: Sequence[str], until: int) -> None:
        frozen.update({name: max(until, frozen.get(name, 0)) for name in found})

    for rule in parse_freeze(flags.healing.freeze):
        if rule.pattern == SHARED:
            found = [name for name in names if name in shared]
        else:
            found = [name for name in names if fnmatchcase(name, rule.pattern)]
        if not found:
            what = "nothing was taken" if rule.pattern == SHARED else f"no parameter's name, as {names[0]} is one"
            raise UserError(f"--freeze {rule.pattern}: {what}: correct it, or leave it out")
        freeze(found, rule.until)
    taught = lessons(flags)
    if taught and taught[0].objective == "layer":
        others = [name for name in names if not fnmatchcase(name, LAYER_TRAINS)]
        freeze(others, taught[1].first if len(taught) > 1 else NEVER)
    if all(name in frozen for name in names):
        raise UserError("--freeze leaves nothing to train in the first step: name fewer parameters")
    return frozen


def report(frozen: dict[str, int], sizes: dict[str, int]) -> list[str]:
    """Return a line for each step until which parameters are frozen.

    Args:
        sizes: elements of each parameter.
    """
    lines = []
    for until in sorted(set(frozen.values())):
        names = [name for name, step in frozen.items() if step == until]
        share = sum(sizes[name] for name in names) / sum(sizes.values())
        when = "in all steps" if until == NEVER else f"until step {until}"
        lines.append(f"frozen {when}: {len(names)} tensors, {share:.1%} of the parameters (memory as if they were not)")
    return lines
