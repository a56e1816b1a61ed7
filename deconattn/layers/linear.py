"""Linear layer of all modules."""

from torch import Tensor, nn

from deconattn.ops.matmul import linear


class Linear(nn.Linear):
    """nn.Linear, with products at a CPU's full width (:mod:`deconattn.ops.matmul`)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)
