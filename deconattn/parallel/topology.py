"""Topology of ranks: tensor, context, data and pipeline coordinates, and the process groups along them."""

from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import ProcessGroup

from deconattn.config.flag_groups import EngineFlags

if TYPE_CHECKING:
    from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology


@dataclass(frozen=True)
class Topology:
    """Place of this rank in the grid of tensor x context x data x pipeline.

    Tensor-parallel neighbours have neighbouring ranks, then come those that share a sequence, and pipeline stages are
    farthest apart: the most talkative share a machine. Context parallelism is data parallelism over parts of
    sequences to whatever knows only weights and gradients, DeepSpeed among it: `zero_size` and `zero_rank` count both.

    Attributes:
        tp_group: ranks that share one stage of one replica; None where that is this rank alone.
        cp_group: ranks that share each sequence with this one, in the order of their parts; None where it is alone.
        replica_group: all ranks that hold the model together; None where that is this rank alone.
        tied_group: first and last stage at this tensor and data coordinate; None unless this rank is one of two.
    """

    tp_size: int = 1
    dp_size: int = 1
    pp_size: int = 1
    tp_rank: int = 0
    dp_rank: int = 0
    pp_rank: int = 0
    cp_size: int = 1
    cp_rank: int = 0
    tp_group: ProcessGroup | None = None
    cp_group: ProcessGroup | None = None
    replica_group: ProcessGroup | None = None
    tied_group: ProcessGroup | None = None
    grid: "PipeModelDataParallelTopology | None" = field(default=None, repr=False, compare=False)

    @classmethod
    def create(cls, tp_size: int = 1, pp_size: int = 1, cp_size: int = 1) -> "Topology":
        """Build over the default process group, data parallelism being what is left; a collective call.

        Raises:
            UserError: the ranks do not divide.
        """
        # Only here: DeepSpeed speaks when it is imported, and cutting a layer needs no process group.
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        dp_size = EngineFlags(tp=tp_size, pp=pp_size, cp=cp_size).data_parallel_size(dist.get_world_size())
        zero_size = dp_size * cp_size
        grid = PipeModelDataParallelTopology(num_pp=pp_size, num_mp=tp_size, num_dp=zero_size)
        here = grid.get_coord(dist.get_rank())
        tied = [[ranks[0], ranks[-1]] for ranks in grid.get_axis_comm_lists("pipe")]
        return cls(
            tp_size,
            dp_size,
            pp_size,
            here.model,
            here.data // cp_size,
            here.pipe,
            cp_size,
            here.data % cp_size,
            tp_group=_own_group(grid.get_axis_comm_lists("model")),
            cp_group=_own_group(runs(grid.get_axis_comm_lists("data"), cp_size)),
            replica_group=_own_group([sorted(grid.get_axis_list("data", index)) for index in range(zero_size)]),
            tied_group=_own_group(tied) if pp_size > 1 else None,
            grid=grid,
        )

    @property
    def zero_size(self) -> int:
        """Number of ranks that hold the same part of the model, which ZeRO shares out among them."""
        return self.dp_size * self.cp_size

    @property
    def zero_rank(self) -> int:
        """This rank's place among those."""
        return self.dp_rank * self.cp_size + self.cp_rank

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def stage_of(self, rank: int) -> int:
        """Return the pipeline stage of any rank."""
        return rank // (self.tp_size * self.zero_size)

    @cached_property
    def mpu(self) -> "PipelineParallelGrid | None":
        """DeepSpeed's view of a grid with tensor parallelism alone, None of any other; a collective call, once."""
        if self.tp_size == 1 or self.pp_size > 1:
            return None
        from deepspeed.runtime.pipe.topology import PipelineParallelGrid

        with redirect_stdout(StringIO()):  # it prints the topology
            return PipelineParallelGrid(self.grid)

    def tp_neighbours(self, count: int) -> ProcessGroup | None:
        """Return a group of `count` consecutive ranks of the tensor group, with this one; a collective call."""
        return self._neighbours("model", count)

    def dp_neighbours(self, count: int) -> ProcessGroup | None:
        """Return a group of `count` consecutive ranks of those that hold the same part of the model, with this one.

        A collective call.
        """
        return self._neighbours("data", count)

    def _neighbours(self, axis: str, count: int) -> ProcessGroup | None:
        assert self.grid is not None
        return _own_group(runs(self.grid.get_axis_comm_lists(axis), count))


def runs(lists: list[list[int]], count: int) -> list[list[int]]:
    """Cut lists into runs of `count`."""
    return [ranks[i : i + count] for ranks in lists for i in range(0, len(ranks), count)]


def _own_group(lists: list[list[int]]) -> ProcessGroup | None:
    """Create all groups on all ranks; return the one that this rank is in, None for a group of one."""
    own = None
    for ranks in lists:
        if len(ranks) > 1:
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                own = group
    return own
