"""How the cost of a mixer grows with the length of a sequence: one layer's forward and backward pass on a CPU.

    python benchmarks/training/growth.py --out benchmarks/results/mixer_growth-cpu.json

Processor time, least of several, which other work on the machine changes less than the time on the wall. Lengths take
turns. A mixer whose work is linear takes twice as long for twice the tokens, one with a map up to four times.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, write_result
from deconattn.cli import parse, run
from deconattn.config.flags import model_config
from deconattn.config.presets import size_defaults
from deconattn.mixers import known_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize

VOCABULARY = 64


@dataclass(frozen=True)
class Arguments:
    """Time mixers at several lengths, and write one result."""

    size: str = "70m"
    """Preset of dimensions."""
    lengths: tuple[int, ...] = (2048, 4096, 8192)
    """Tokens of the sequence."""
    repeats: int = 3
    """Passes of each length, after one to warm up."""
    threads: int = 1
    variants: tuple[str, ...] = ()
    """Variants to run; none is every one that the package has."""
    out: Path = RESULTS / "mixer_growth-cpu.json"
    """The result to write."""


def main() -> None:
    arguments = parse(Arguments)
    torch.set_num_threads(arguments.threads)
    seconds: dict[str, dict[str, float]] = {}
    for name in arguments.variants or known_names():
        timed = {length: _Pass(arguments.size, name, length) for length in arguments.lengths}
        for one in timed.values():
            one.run()
        taken: dict[int, list[float]] = {length: [] for length in timed}
        for _ in range(arguments.repeats):
            for length, one in timed.items():
                taken[length].append(one.run())
        seconds[name] = {str(length): round(min(each), 5) for length, each in taken.items()}
        print(name, seconds[name], file=sys.stderr)
    write_result(arguments.out, {"size": arguments.size, "threads": arguments.threads, "seconds": seconds})


class _Pass:
    """Forward and backward pass of the mixer of a model's only layer, over one sequence and the streams it needs."""

    def __init__(self, size: str, name: str, length: int) -> None:
        flags = replace(size_defaults(size).model, num_hidden_layers=1, variant=name, pattern="uniform")
        model = CausalLM(model_config(flags, VOCABULARY, length))
        initialize(model, 0, torch.zeros(length, dtype=torch.long))
        decoder, generator = model.model, torch.Generator().manual_seed(0)
        hidden = torch.randn(1, length, model.config.hidden_size, generator=generator)
        hidden = decoder.with_streams(hidden, length).detach()
        context = replace(decoder.context(length, hidden), output_rows=1 if decoder.streams else None)
        static = hidden.clone() if decoder.last_static_layer >= 0 else None
        self._mixer: Any = decoder.blocks[0].self_attn
        self._arguments = hidden.requires_grad_(), static, context

    def run(self) -> float:
        """Return the seconds of processor time that it took."""
        begun = time.process_time()
        self._mixer(*self._arguments).sum().backward()
        return time.process_time() - begun


if __name__ == "__main__":
    run(main)
