"""Second copy of ZeRO-3's weights, which neighbouring ranks keep between them (hpZ of ZeRO++, Wang et al. 2023).

A step's first forward pass gathers weights over all data-parallel ranks; what each rank keeps of them then suffices for
its neighbours until the weights change. DeepSpeed would take ranks with consecutive numbers for neighbours, which under
tensor parallelism hold different parts of the model, so the groups are ours.
"""

from deepspeed.utils import groups
from torch.distributed import ProcessGroup

from deconattn.parallel.topology import Topology

_shared: tuple[Topology, int, ProcessGroup | None] | None = None


def share_second_copies(topology: Topology, count: int) -> ProcessGroup | None:
    """Tell DeepSpeed which ranks share second copies, before it partitions a weight; a collective call.

    Asked again, for the same topology, it makes no other groups.

    Args:
        count: data-parallel ranks that share one; 0 for none, so that DeepSpeed forgets an earlier engine's.

    Returns:
        The group of this rank, what `deepspeed.zero.Init` takes as its `zero_param_parallel_group`.
    """
    global _shared
    if _shared is None or _shared[0] is not topology or _shared[1] != count:
        _shared = (topology, count, topology.dp_neighbours(count) if count else None)
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = _shared[2]
    return _shared[2]
