"""Steps of one rank of a job on a virtual GPU, and what they held and sent."""

import dataclasses
import os
import sys
import traceback
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

if TYPE_CHECKING:
    from deconattn.dry_run.ledger import Collective
    from deconattn.model.causal_lm import CausalLM
    from deconattn.train.engine import Engine


@dataclass(frozen=True)
class Dry:
    """One rank's part of a dry run.

    Attributes:
        flags, model, ranks: the job.
        rank: which of them.
        gpu_bytes: memory of a GPU.
    """

    flags: TrainingFlags
    model: ModelConfig
    ranks: int
    rank: int
    gpu_bytes: int


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in a step: calls, and bytes that this rank sends by ring algorithms."""

    name: str
    ranks: int
    calls: int
    sent: int


@dataclass(frozen=True)
class RankReport:
    """What one rank would hold and send.

    Attributes:
        coordinates: stage, place among the ranks of one part of the model, and tensor-parallel rank.
        parameters: elements of this rank's part of the model.
        built: bytes at the peak while the engine is made.
        between: bytes held between steps.
        peak: bytes at the peak of a step.
        traffic: of a whole optimiser step, by kind.
        refusal: why it would not train, in a line; the figures are then 0.
        users: whether the user can mend that.
    """

    rank: int
    coordinates: tuple[int, int, int] = (0, 0, 0)
    parameters: int = 0
    built: int = 0
    between: int = 0
    peak: int = 0
    traffic: dict[str, tuple[Traffic, ...]] = field(default_factory=dict)
    refusal: str | None = None
    users: bool = False

    def sent(self, kind: str) -> int:
        """Bytes sent of a kind of traffic in a step."""
        return sum(one.sent for one in self.traffic.get(kind, ()))


def dry_run_rank(dry: Dry) -> RankReport:
    """Build one rank and take steps; in a process of its own, which is of no other use afterwards."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        sys.stderr = nowhere  # notes are for the real run
        try:
            return _run(dry)
        except UserError as error:
            return RankReport(dry.rank, refusal=str(error), users=True)
        except Exception as error:  # whatever it is, a job of this kind must not be queued
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = (str(error).splitlines() or [""])[0]
            told = f"{type(error).__name__}: {reason} ({os.path.basename(where.filename)}:{where.lineno})"
            return RankReport(dry.rank, refusal=told)
        finally:
            sys.stderr = sys.__stderr__


def _run(dry: Dry) -> RankReport:
    import deconattn.dry_run.prepared  # noqa: F401
    from deconattn.dry_run.ledger import OTHER, Ledger
    from deconattn.dry_run.virtual_gpu import VirtualGpu, enter_virtual_world

    enter_virtual_world(dry.rank, dry.ranks, dry.gpu_bytes)
    from deconattn.parallel.topology import Topology
    from deconattn.train.engine import Engine, empty_model

    flags, model = dry.flags, dry.model
    micro_batches = flags.accumulation_steps(flags.engine.data_parallel_size(dry.ranks))
    with VirtualGpu(), Ledger() as ledger:
        topology = Topology.create(flags.engine.tp, flags.engine.pp, flags.engine.cp)
        ledger.know(topology)
        # As many micro-batches as the stage holds at once, and one more: the others are like them.
        few = min(micro_batches, topology.pp_size - topology.pp_rank + 1)
        part = empty_model(model, flags, topology)
        parameters = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in part.parameters())
        ledger.restart()  # whole tensors, before they are cut, are on meta in a training as well
        engine = Engine(part, _shortened(flags, few * topology.dp_size), topology)
        if not topology.is_first_stage:
            _tell_of_hops(engine, flags, part)
        built = ledger.peak
        if engine.stage == 3 and topology.zero_size > 1:
            _step(engine, flags, few)  # the order of gathering is learnt in the first step
        ledger.restart()
        _step(engine, flags, few)
        peak, calls, sent = ledger.peak, ledger.calls, ledger.sent
        if few < micro_batches:
            ledger.restart()
            _step(engine, flags, few + 1)
            more = micro_batches - few
            calls, sent = _extended(calls, ledger.calls, more), _extended(sent, ledger.sent, more)
        between = ledger.held
    kinds: dict[str, tuple[Traffic, ...]] = {}
    for each, count in sorted(calls.items(), key=lambda item: -sent[item[0]]):
        kinds[each.kind] = (*kinds.get(each.kind, ()), Traffic(each.name, each.ranks, count, sent[each]))
    ordered = {kind: kinds[kind] for kind in ("tensor", "context", "data", "pipeline", "tied", OTHER) if kind in kinds}
    place = topology.pp_rank, topology.zero_rank, topology.tp_rank
    return RankReport(dry.rank, place, parameters, built, between, peak, ordered)


def _shortened(flags: TrainingFlags, micro_batches: int) -> TrainingFlags:
    """Return flags of a step of fewer micro-batches."""
    size = flags.optimization.micro_batch_size * micro_batches
    return dataclasses.replace(
        flags,
        optimization=dataclasses.replace(flags.optimization, global_batch_size=size),
        engine=dataclasses.replace(flags.engine, compile=False),
    )


def _tell_of_hops(engine: "Engine", flags: TrainingFlags, model: "CausalLM") -> None:
    """Tell a stage's engine what the one before, which is not there, would say of the tensors that it sends."""
    import torch

    from deconattn.model.streams import layer_rows

    config, decoder, topology, inner = model.config, model.model, engine.topology, engine._engine
    rows, length = flags.optimization.micro_batch_size, flags.data.seq_len
    part = length // topology.cp_size
    local = part // topology.tp_size if flags.engine.sequence_parallel else part
    width = config.hidden_size * (2 if decoder.span.start <= decoder.last_static_layer else 1)
    hidden = layer_rows(config, rows)[decoder.span.start], local, width
    dtype = torch.bfloat16 if flags.engine.precision == "bf16" else torch.float32
    labels, documents = ((rows, part), torch.int64), ((rows, length), torch.int64)
    tensors = [(hidden, dtype), labels, *[documents] * (2 if flags.data.doc_mask else 0)]

    def receive(stage: int) -> tuple[torch.Tensor, ...]:
        allocate = inner._allocate_or_extend_buffers
        return tuple(allocate(index, list(shape), kind) for index, (shape, kind) in enumerate(tensors))

    inner._recv_tensor_meta = receive


def _step(engine: "Engine", flags: TrainingFlags, micro_batches: int) -> None:
    import torch

    from deconattn.data import Batch

    rows, length = flags.optimization.micro_batch_size, flags.data.seq_len
    fields = torch.zeros(4 if flags.data.doc_mask else 2, rows, length, dtype=torch.long)
    if flags.data.doc_mask:
        fields[2] = torch.arange(length)  # a document a row
    engine.train_step([Batch.of(fields) for _ in range(micro_batches)], flags.optimization.lr)


def _extended(base: "Counter[Collective]", longer: "Counter[Collective]", times: int) -> "Counter[Collective]":
    """Return what `times` more micro-batches make of a count, given that of one more."""
    return Counter({key: base[key] + times * max(0, longer[key] - base[key]) for key in base | longer})
