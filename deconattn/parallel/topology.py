"""Which rank is where: tensor, data and pipeline coordinates, and the process groups along them."""

from dataclasses import dataclass, field

import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch.distributed import ProcessGroup

from deconattn.config.flags import EngineFlags


@dataclass(frozen=True)
class Topology:
    """The place of this rank in tensor x data x pipeline.

    Tensor-parallel neighbours have neighbouring ranks, pipeline stages are farthest apart: the most talkative
    share a machine.

    Attributes:
        tensor_group: ranks that share one stage of one replica; None where that is this rank alone.
        model_group: all ranks of one replica; None where that is this rank alone.
        tied_group: first and last stage at this tensor and data coordinate; None unless this rank is one of two.
    """

    tensor_size: int = 1
    data_size: int = 1
    pipeline_size: int = 1
    tensor_rank: int = 0
    data_rank: int = 0
    pipeline_rank: int = 0
    tensor_group: ProcessGroup | None = None
    model_group: ProcessGroup | None = None
    tied_group: ProcessGroup | None = None
    grid: PipeModelDataParallelTopology | None = field(default=None, repr=False, compare=False)

    @classmethod
    def create(cls, tensor_size: int = 1, pipeline_size: int = 1) -> "Topology":
        """Over the default process group, data parallelism being what is left; a collective call.

        Raises:
            UserError: the ranks do not divide.
        """
        data_size = EngineFlags(tp=tensor_size, pp=pipeline_size).data_parallel_size(dist.get_world_size())
        grid = PipeModelDataParallelTopology(num_pp=pipeline_size, num_mp=tensor_size, num_dp=data_size)
        here = grid.get_coord(dist.get_rank())
        tied = [[ranks[0], ranks[-1]] for ranks in grid.get_axis_comm_lists("pipe")]
        return cls(
            tensor_size,
            data_size,
            pipeline_size,
            here.model,
            here.data,
            here.pipe,
            tensor_group=_own_group(grid.get_axis_comm_lists("model")),
            model_group=_own_group([sorted(grid.get_axis_list("data", index)) for index in range(data_size)]),
            tied_group=_own_group(tied) if pipeline_size > 1 else None,
            grid=grid,
        )

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def owns_stage(self) -> bool:
        """Whether this is the one rank that writes its stage's part of a checkpoint."""
        return self.tensor_rank == 0 and self.data_rank == 0

    def tensor_neighbours(self, count: int) -> ProcessGroup | None:
        """`count` consecutive ranks of the tensor group, this one among them; a collective call."""
        assert self.grid is not None
        groups = self.grid.get_axis_comm_lists("model")
        return _own_group([ranks[i : i + count] for ranks in groups for i in range(0, len(ranks), count)])


def _own_group(lists: list[list[int]]) -> ProcessGroup | None:
    """The group that this rank is in, of those that all ranks make together; None for a group of one."""
    own = None
    for ranks in lists:
        if len(ranks) > 1:
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                own = group
    return own
