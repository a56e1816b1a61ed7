"""What one operation asks of a device."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """An operation.

    Attributes:
        part: of a step, such as `mixing`.
        name: of the operator or kernel.
        kind: `product`, `attention` (of a library), `kernel` (our mixing kernels) or `memory`.
        bytes: read and written, each tensor once.
        narrow: computes in 16 bits.
        smallest: the least dimension of a product, or a head's of attention; else 0.
    """

    part: str
    name: str
    kind: str
    flops: int
    bytes: int
    launches: int
    narrow: bool = True
    smallest: int = 0

    @property
    def backward(self) -> bool:
        return "backward" in self.name
