"""Modules that use another module's: without tensors, so that each of those has one name and one owner.

They find it by its name when they are called, and so meet an adapter or a quantised layer that has taken its place.
"""

from torch import Tensor, nn

from deconattn.layers.linear import PartedLinear


class BorrowedRows(nn.Module):
    """Linear layer that is the rows `start` to `stop` of another module's one: [.., k] -> [.., stop - start]."""

    start: int
    stop: int

    def __init__(self, lender: nn.Module, name: str) -> None:
        super().__init__()
        self._lender, self._name = (lender,), name  # in a tuple, or it would be a module of this one

    @property
    def out_features(self) -> int:
        return self.stop - self.start

    def forward(self, inputs: Tensor) -> Tensor:
        projection: nn.Module = getattr(self._lender[0], self._name)
        if isinstance(projection, PartedLinear):
            return projection(inputs, (self.start, self.stop))
        return projection(inputs)[..., self.start : self.stop]  # an adapted or a quantised one gives all


class BorrowedModule(nn.Module):
    """Another module's module, called as if it were one's own."""

    def __init__(self, lender: nn.Module, name: str) -> None:
        super().__init__()
        self._lender, self._name = (lender,), name

    def forward(self, inputs: Tensor) -> Tensor:
        module: nn.Module = getattr(self._lender[0], self._name)
        return module(inputs)
