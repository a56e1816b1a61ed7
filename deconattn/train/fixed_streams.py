"""Decision how an engine runs the fixed streams: once an optimiser step, or beside each of its micro-batches."""

from typing import Any

import torch

from deconattn.config.flags import TrainingFlags
from deconattn.layers.config import ModelConfig
from deconattn.model.held_streams import LARGEST_SHARE, HeldStreams, held_bytes, must_be_tried
from deconattn.model.streams import Streams
from deconattn.parallel.topology import Topology


class StreamRunner:
    """Runner of the fixed streams in the steps of one engine.

    Args:
        wrapped: the optimiser that DeepSpeed made.

    Attributes:
        untried: a third party's variant is on the streams' way: they are held once :meth:`settle` has seen a trial.
        reason: why they run beside each micro-batch; None: they are held, or the model has none.
    """

    def __init__(self, config: ModelConfig, flags: TrainingFlags, topology: Topology, wrapped: Any) -> None:
        self._wrapped, self._accumulation = wrapped, flags.accumulation_steps(topology.dp_size)
        self._there = bool(Streams.of(config.layer_variants).fixed)
        size = 2 if flags.engine.precision == "bf16" else 4
        held = held_bytes(config, flags.data.seq_len, size, topology.tp_size)
        self.untried, self.reason = False, None
        if not self._there:
            return
        if topology.pp_size > 1:
            self.reason = "pipeline stages send it on with each"
        elif torch.cuda.is_available() and held > LARGEST_SHARE * torch.cuda.mem_get_info()[1]:
            self.reason = f"to hold it for a step takes {held / 2**30:.1f} GiB, more than a tenth of the GPU's memory"
        elif must_be_tried(config.layer_variants):
            self.untried, self.reason = True, "it has not been tried whether it is the same beside each"

    def settle(self, differs: bool) -> None:
        """Decide by the outcome of a :class:`StreamTrial`, which must be the same on all ranks."""
        self.untried, self.reason = False, None
        if differs:
            self.reason = "a variant draws random numbers or lets rows of a batch meet on its way"

    def begin(self, alone: bool) -> HeldStreams | None:
        """Begin an optimiser step; None: each micro-batch runs the streams beside it.

        Args:
            alone: the step has one micro-batch.
        """
        if alone or not self._there or self.reason is not None:
            return None
        self._forget_gradients()
        return HeldStreams()

    def report(self) -> list[str]:
        """Return what is to be said of it where it runs beside each of several micro-batches: at most a line."""
        if self.reason is None or self._accumulation == 1:
            return []
        return [f"the fixed stream runs anew with each of {self._accumulation} micro-batches: {self.reason}"]

    def _forget_gradients(self) -> None:
        """Set DeepSpeed's sums of gradients to zero.

        Projections of the stream have no gradient before the last micro-batch. Where the first one's is what
        overwrites the step before (ZeRO-3, ZeRO-2 with an offloaded optimiser), theirs would be added to that.
        """
        whole = getattr(self._wrapped, "grad_partitions_flat_buffer", None)
        parts = getattr(self._wrapped, "accumulated_grads_in_cpu", {}).values()
        for sums in parts if whole is None else (whole,):
            sums.zero_()
