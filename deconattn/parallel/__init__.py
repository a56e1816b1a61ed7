"""One model over many ranks: tensor, sequence and pipeline parallelism, put on from outside.

Model and mixers know nothing of ranks; they declare how their linear layers may be cut. As the work flows:
:class:`Topology` (who holds what), :mod:`shards` (cut tensors and their whole shapes), :mod:`tensor` (cut layers and
what ranks exchange around them), :mod:`vocabulary` (embedding, head and loss), :mod:`pipeline` (stages under
DeepSpeed), and :func:`build_model`, which puts them together.
"""

from deconattn.parallel.build import build_model
from deconattn.parallel.shards import Shard, shard_of
from deconattn.parallel.topology import Topology

__all__ = ["Shard", "Topology", "build_model", "shard_of"]
