"""Cluster that a job is planned for: its GPUs, and the links between them.

Ranks lie in the order pipeline, data, context, tensor: tensor-parallel neighbours share a machine, then come those that
share a sequence, and stages are farthest apart (:class:`deconattn.parallel.topology.Topology`).
"""

from dataclasses import dataclass
from math import log2

from deconattn.cost.cards import CARDS, Card
from deconattn.errors import UserError

OF_LINK = 0.8
"""Part of a link's data sheet that NCCL's large messages are taken to reach (assumed; nccl-tests print 0.75 to 0.9)."""
LATENCY = 10e-6
"""Seconds of a collective for each doubling of its ranks, and of a message between stages (assumed)."""


@dataclass(frozen=True)
class Links:
    """Links of one GPU, data sheet: bytes/s in each direction to GPUs of its machine, and bits/s to other machines."""

    inside: float
    network: float


LINKS = {
    "A100": Links(300e9, 200e9),
    "H100": Links(450e9, 400e9),
    "H200": Links(450e9, 400e9),
    "B200": Links(900e9, 400e9),
    "MI300X": Links(448e9, 400e9),
}
"""NVLink and xGMI of data sheets; networks as these are usually sold, one port a GPU."""


@dataclass(frozen=True)
class Cluster:
    """GPUs and links.

    Attributes:
        card: what a GPU computes.
        per_node: GPUs of a machine.
        inside: bytes/s that a GPU sends to others of its machine.
        network: bytes/s that a GPU sends to other machines.
        storage: bytes/s that the checkpoints' file system takes in all.
        speed: what a GPU does in the time that the card's figures have it do 1; measured runs tell.
    """

    name: str
    card: Card
    per_node: int
    inside: float
    network: float
    storage: float
    speed: float = 1.0

    @classmethod
    def of(cls, gpu: str, per_node: int, network_gbps: float | None, storage: float) -> "Cluster":
        """Return a cluster of a named GPU.

        Args:
            network_gbps: Gbit/s of each GPU's port; None is what the GPU usually comes with.
            storage: GB/s.

        Raises:
            UserError: no such GPU, or figures that cannot be.
        """
        names = {name.lower(): name for name in CARDS}
        if gpu.lower() not in names:
            raise UserError(f"--gpu {gpu}: no such GPU here, choose one of {', '.join(names)}")
        for flag, figure in (("--gpus-per-node", per_node), ("--network-gbps", network_gbps), ("--storage", storage)):
            if figure is not None and not figure > 0:
                raise UserError(f"{flag} is {figure:g}: it must be above zero")
        name = names[gpu.lower()]
        network = LINKS[name].network if network_gbps is None else 1e9 * network_gbps
        return cls(name, CARDS[name], per_node, LINKS[name].inside * OF_LINK, network / 8 * OF_LINK, 1e9 * storage)

    def seconds(self, sent: float, calls: float, ranks: int, stride: int, ring: bool = True) -> float:
        """Return the seconds of collectives, or messages, in which each of `ranks` ranks sends `sent` bytes.

        A ring of ranks that leaves the machine does so through the ports of all its members there.

        Args:
            calls: how many of them.
            stride: distance of the ranks that take part.
            ring: they send around a ring; otherwise each sends through its own port what leaves the machine.
        """
        if ranks < 2 or not sent:
            return 0.0
        here = max(1, min(ranks, self.per_node // stride))
        ports = here if ring else 1
        bandwidth = self.inside if here == ranks else min(self.inside, ports * self.network)
        return sent / bandwidth + calls * LATENCY * log2(ranks)
