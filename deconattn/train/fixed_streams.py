"""Decision how an engine runs the fixed streams: once an optimiser step, or beside each of its micro-batches."""

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any

import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

from deconattn.config.flags import TrainingFlags
from deconattn.data import Batch
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
        self._wrapped, self._traces = wrapped, _Traces(wrapped)
        self._accumulation = flags.accumulation_steps(topology.dp_size)
        self._there = bool(Streams.of(config.layer_variants).fixed)
        size = 2 if flags.engine.precision == "bf16" else 4
        held = held_bytes(config, flags.data.seq_len, size, topology.tp_size, topology.cp_size)
        self.untried = False
        self.reason: str | None = None
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

    def beside(
        self, micro_batches: Iterable[Batch], is_last: Callable[[], bool]
    ) -> Iterator[tuple[Batch, HeldStreams | None]]:
        """Yield a step's micro-batches and what runs the decoder in each; None: it carries the streams itself.

        Args:
            is_last: whether the micro-batch to come is the step's last.
        """
        streams: HeldStreams | None = None
        for number, batch in enumerate(micro_batches):
            last = is_last()
            if number == 0 and not last and self._there and self.reason is None:
                self._forget_gradients()
                streams = HeldStreams()
            if streams:
                streams.last = last
                self._traces.use("last" if last else "between" if number else "first")
            yield batch, streams
        self._traces.use("")

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


class _Traces:
    """ZeRO-3's traces of the modules that a micro-batch calls, by which it gathers weights ahead of time.

    One trace serves passes that call the same modules, and is dropped at the first other one. With streams held the
    first, the last and the other micro-batches of a step differ, so that each kind has its own: a copy of DeepSpeed's
    coordinator, which shares what is gathered and on the way. Nothing to do in other stages.
    """

    def __init__(self, wrapped: Any) -> None:
        self._offload = getattr(wrapped, "parameter_offload", None)
        self._coordinators: dict[str, Any] = {}

    def use(self, kind: str) -> None:
        """Go on with the trace of a kind of micro-batch; "" is DeepSpeed's own, for whatever else there is."""
        if self._offload is None:
            return
        if not self._coordinators:
            self._coordinators[""] = self._offload.param_coordinator
        if kind not in self._coordinators:
            coordinator = copy(self._coordinators[""])
            coordinator._clear_trace_structures()
            coordinator._PartitionedParameterCoordinator__trace_mode = ZeRoTraceMode.INVALID
            self._coordinators[kind] = coordinator
        self._offload.param_coordinator = self._coordinators[kind]
