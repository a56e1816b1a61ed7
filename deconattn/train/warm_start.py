"""Warm start: weights of a trained model in place of initial ones, on any topology; each rank reads what it holds.

Optimiser, schedule and data are those of a fresh run. Weights go to the fp32 masters, so that bf16 training loses
nothing of them.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from deconattn.checkpoint.origins import lengthened, summary
from deconattn.checkpoint.slice_file import part_of_shard
from deconattn.config.flags import TrainingFlags
from deconattn.healing.source import Source, open_source, reopen_source, shared_tensors
from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import buffer_shards
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import FIXED_TEXT
from deconattn.parallel.agreement import everywhere
from deconattn.parallel.process_group import from_rank_0
from deconattn.train.engine import Engine


class WarmStart:
    """Weights that a run begins with; made and called on every rank.

    Attributes:
        origins: which of the model's tensors they are.

    Raises:
        UserError: on every rank: no such model, or one that the flags' model cannot begin with.
    """

    def __init__(self, flags: TrainingFlags, config: ModelConfig) -> None:
        assert flags.healing.init_from is not None
        self._source = open_everywhere(flags.healing.init_from, flags)
        keep = frozenset({FIXED_TEXT} if flags.data.fixed_text else ())
        self.origins = shared_tensors(config, self._source, keep)
        self._variants, self._seed = config.layer_variants, flags.optimization.seed
        self._positions = lengthened(flags.model.rope_scaling, flags.plan.longest, self._source.config)

    @property
    def origin(self) -> dict[str, Any]:
        """Fields of the run's configuration."""
        return self._source.origin | {"taken": self.origins.taken, "taken_layers": self._source.config.layer_variants}

    def fill_buffers(self, model: CausalLM) -> None:
        """Fill those buffers of this rank's part of a model that are taken; a collective call."""
        taken = set(self.origins.taken)

        def load() -> None:
            shards = buffer_shards(model)
            for name, buffer in model.named_buffers():
                if name in taken:
                    part = part_of_shard(shards.get(name))
                    rows, _ = self.origins.continued.get(name, (None, None))
                    own = buffer if rows is None else buffer[:rows]
                    own.copy_(self._source.read(name, part, 0, own.numel()).view(own.shape))

        with torch.no_grad():
            everywhere(load)

    def fill_parameters(self, engine: Engine) -> None:
        """Fill the masters of the parameters that are taken, and the engine's copies of them; a collective call."""
        load_weights(engine, self._source, set(self.origins.taken))
        self._source.close()

    def report(self) -> list[str]:
        """Return lines that say what was taken, what begins anew, what has no place, and how positions are scaled."""
        taken = summary(self.origins, self._variants, str(self._source.folder), self._seed)
        return [*taken.splitlines(), *self._positions]


def open_everywhere(path: Path, flags: TrainingFlags) -> Source:
    """Open trained weights on every rank, of a run the same checkpoint on all; a collective call.

    Raises:
        UserError: on every rank.
    """
    opened: list[Source] = []

    def find() -> Path:
        opened.append(open_source(path, flags.model.plugin))
        return opened[0].folder

    folder = from_rank_0(find)

    def follow() -> None:
        if not opened:
            opened.append(reopen_source(folder, flags.model.plugin))

    everywhere(follow)
    return opened[0]


def load_weights(engine: Engine, source: Source, taken: Collection[str]) -> None:
    """Read the named parameters into an engine's masters, and make its low-precision copies; a collective call.

    Raises:
        UserError: on every rank: a tensor is damaged or cannot be read.
    """

    def load() -> None:
        for held in engine.state.held():
            if held.name in taken:
                values = held.values["weights"]
                values.copy_(source.read(held.name, part_of_shard(held.shard), held.first, held.last))

    with torch.no_grad():
        everywhere(load)
        engine.state.spread({})
