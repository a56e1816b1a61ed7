"""Second copy of ZeRO-3's weights, which neighbouring ranks keep between them (hpZ of ZeRO++, Wang et al. 2023).

A step's first forward pass gathers weights over all data-parallel ranks; what each rank keeps of them then suffices for
its neighbours until the weights change. DeepSpeed would take ranks with consecutive numbers for neighbours, which under
tensor parallelism hold different parts of the model, so the groups are ours.
"""

from deepspeed.utils import groups
from torch.distributed import ProcessGroup

from deconattn.parallel.topology import Topology


def share_second_copies(topology: Topology, count: int) -> ProcessGroup | None:
    """Tell DeepSpeed which ranks share second copies, before it partitions a weight; a collective call.

    Args:
        count: data-parallel ranks that share one; 0 for none, so that DeepSpeed forgets an earlier engine's.

    Returns:
        The group of this rank, what `deepspeed.zero.Init` takes as its `zero_param_parallel_group`.
    """
    group = topology.dp_neighbours(count) if count else None
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = group
    return group
