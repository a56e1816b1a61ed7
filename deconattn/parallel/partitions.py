"""ZeRO-3's partitions of parameters, made before there is an engine: no rank holds more than one whole parameter.

`deepspeed.zero.Init` would partition a module as its constructor ends, whole and filled by rank 0, whose values it
sends to all. Here a parameter is partitioned with no values at all, and each rank fills what it keeps of it
(:func:`deconattn.layers.shards.kept_part`). It leans on internals of the pinned DeepSpeed.
"""

from typing import Any

import torch.distributed as dist
from deepspeed import zero
from deepspeed.utils import groups
from torch import nn

from deconattn.layers.shards import Partition, mark_partition, partition_bounds
from deconattn.parallel.topology import Topology


class Partitions:
    """Partitioning of one model's parameters over the data-parallel ranks; made and called on all of them.

    Args:
        config: the dictionary that the engine will be made with, of ZeRO stage 3.
    """

    def __init__(self, config: dict[str, Any], topology: Topology) -> None:
        mpu = topology.mpu
        self._init = zero.Init(
            module=nn.Module(),  # with it DeepSpeed sets itself up as for a model that is there
            data_parallel_group=None if mpu is None else mpu.get_data_parallel_group(),
            config_dict_or_path=config,
            mpu=mpu,
            zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
        )

    def __call__(self, parameter: nn.Parameter) -> None:
        """Reduce a parameter to this rank's partition, whose values are not set and whose padding is zero."""
        shape = parameter.shape
        self._init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]
        parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]  # of hpZ: as after a step, when it is stale
        memory = parameter.ds_tensor  # type: ignore[attr-defined]
        rank = dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
        start, _ = partition_bounds(shape.numel(), memory.numel(), rank)
        partition = Partition(memory, start, shape)
        memory[partition.stop - partition.start :].zero_()
        mark_partition(parameter, partition)
