"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) under ZeRO and tensor parallelism.

The update of a matrix is its momentum made orthogonal, which takes the whole matrix, while ZeRO has partitions of flat
groups and tensor parallelism parts of matrices. As in "Muon is scalable for LLM training" (Liu et al. 2025, algorithm
1, https://arxiv.org/abs/2502.16982) the momentum is kept in partitions, its update is gathered in bf16, in which it is
made orthogonal anyway, and a rank does that for the matrices of which it holds some. So a step is to the bit the one of
`torch.optim.Muon`, whose iteration this is, wherever the matrix lies.

Its rates are scaled as in that paper (`match_rms_adamw`): an update has the root mean square that AdamW's have, so that
learning rate and weight decay are AdamW's.

Not DeepSpeed's own Muon (`deepspeed/runtime/zero/muon`): it makes the update before the norm is taken and clips the
update, not the gradient; it needs the host to know whether a step is skipped; and it makes parts of matrices orthogonal
where tensor parallelism has cut them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from deconattn.layers.shards import Shard, shard_of

MOMENTUM = 0.95
COEFFICIENTS, STEPS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""torch.optim.Muon's defaults."""
SCALING = "match_rms_adamw"


@dataclass(frozen=True)
class Piece:
    """The run of a matrix's elements, of this rank's tensor-parallel part, that a partition holds.

    Attributes:
        first: its first element in the part.
        offset: its first element in the partition.
    """

    first: int
    elements: int
    offset: int


@dataclass(frozen=True)
class Matrix:
    """A matrix, this rank's tensor-parallel part of it, and its run in a partition.

    Attributes:
        shape: of the part.
        shard: the part; None where it is the whole.
        piece: None where other data-parallel ranks hold all of the part.
        group: the data-parallel ranks that hold runs of the part; None where this one has all that there is.
    """

    shape: tuple[int, int]
    shard: Shard | None
    piece: Piece | None
    group: ProcessGroup | None


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for one parameter group, AdamW for the others.

    Like fused AdamW it leaves weights and state alone where `found_inf`, a tensor, is not 0.

    Args:
        matrices: Muon's group.
        adamw: the others' optimiser.
    """

    found_inf: Tensor

    def __init__(self, matrices: dict[str, Any], adamw: torch.optim.Optimizer) -> None:
        super().__init__([{**matrices, "muon": True}], {})
        self._adamw = adamw
        self.param_groups += adamw.param_groups
        self._parameters: list[nn.Parameter] = list(self.param_groups[0]["params"])
        self._matrices: dict[Tensor, list[Matrix]] = {}
        self._tensor_group: ProcessGroup | None = None

    def locate(self, wrapped: Any, stage: int, tensor_group: ProcessGroup | None) -> None:
        """Find the matrices in the partitions that DeepSpeed has made of them; a collective call under ZeRO.

        Args:
            wrapped: the optimiser that DeepSpeed made of this one.
            stage: ZeRO stage.
            tensor_group: the ranks that tensor parallelism has cut matrices for.
        """
        self._tensor_group = tensor_group
        if stage == 0:
            self._matrices = {parameter: [_whole(parameter)] for parameter in self._parameters}
        elif stage == 3:
            self._matrices = _zero_3(wrapped, self._parameters)
        else:
            (partition,) = self.param_groups[0]["params"]
            self._matrices = {partition: _zero_1_and_2(wrapped, self._parameters)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update weights and state."""
        skip: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            if group.get("muon"):
                for partition in group["params"]:
                    if partition.grad is not None:
                        self._update(partition, group["lr"], group["weight_decay"], skip)
        self._adamw.param_groups = [group for group in self.param_groups if not group.get("muon")]
        self._adamw.state = self.state
        if skip is not None:
            self._adamw.found_inf = skip  # type: ignore[attr-defined]
        self._adamw.step()

    def _update(self, partition: Tensor, rate: float, weight_decay: float, skip: Tensor | None) -> None:
        state = self.state[partition]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(partition)
        assert partition.grad is not None
        weights, gradients = partition.view(-1), partition.grad.view(-1)
        momenta = state["momentum_buffer"].view(-1)
        for matrix in self._matrices[partition]:
            piece, update = matrix.piece, None
            if piece is not None:
                run = slice(piece.offset, piece.offset + piece.elements)
                momentum = momenta[run].lerp(gradients[run], 1 - MOMENTUM)
                update = gradients[run].lerp(momentum, MOMENTUM).bfloat16()
                _put(momenta[run], momentum, skip)
            whole = self._gathered(matrix, update, weights)
            if piece is None or whole is None:
                continue
            orthogonal = _zeropower_via_newtonschulz(whole, COEFFICIENTS, STEPS, EPSILON)
            part = orthogonal if matrix.shard is None else matrix.shard.take(orthogonal)
            mine = part.reshape(-1)[piece.first : piece.first + piece.elements]
            step = weights[run] * (1 - rate * weight_decay)
            step.add_(mine, alpha=-_adjust_lr(rate, SCALING, whole.shape))
            _put(weights[run], step, skip)

    def _gathered(self, matrix: Matrix, update: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the whole matrix of updates, bf16; None where it is nothing of this rank's.

        A collective call of the ranks that hold runs or parts of it.
        """
        rows, columns = matrix.shape
        if matrix.group is not None:
            # The runs do not overlap: adding zeros is exact.
            part = torch.zeros(rows * columns, dtype=torch.bfloat16, device=like.device)
            if update is not None and matrix.piece is not None:
                part[matrix.piece.first : matrix.piece.first + matrix.piece.elements] = update
            dist.all_reduce(part, group=matrix.group)
        elif update is None:
            return None
        else:
            part = update
        part = part.view(rows, columns)
        if matrix.shard is None or self._tensor_group is None:
            return part
        return _join(part, matrix.shard, self._tensor_group)


def _put(target: Tensor, value: Tensor, skip: Tensor | None) -> None:
    target.copy_(value if skip is None else torch.where(skip == 0, value, target))


def _join(part: Tensor, shard: Shard, group: ProcessGroup) -> Tensor:
    """All-gather the whole of which each tensor-parallel rank has a part; a collective call."""
    # Parts may differ in size; the collective wants equal ones.
    room = max(stop - start for start, stop in shard.bounds)
    mine = part.new_zeros(*part.shape[: shard.dim], room, *part.shape[shard.dim + 1 :])
    mine.narrow(shard.dim, 0, part.shape[shard.dim]).copy_(part)
    parts = [torch.empty_like(mine) for _ in shard.bounds]
    dist.all_gather(parts, mine, group=group)
    sizes = (stop - start for start, stop in shard.bounds)
    return shard.join([padded.narrow(shard.dim, 0, size) for padded, size in zip(parts, sizes, strict=True)])


def _whole(parameter: nn.Parameter) -> Matrix:
    """Return a matrix of which this rank has all of its part, and that is its own partition."""
    rows, columns = parameter.shape
    return Matrix((rows, columns), shard_of(parameter), Piece(0, parameter.numel(), 0), None)


def _zero_1_and_2(wrapped: Any, parameters: Sequence[nn.Parameter]) -> list[Matrix]:
    pieces: list[Piece | None] = []
    for parameter in parameters:
        found: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if found is None:
            pieces.append(None)
        else:
            run = found.lp_fragment_address
            pieces.append(Piece(run.start, run.numel, found.hp_fragment_address.start))
    group = wrapped.dp_process_group
    alone = _held_alone(parameters, pieces, group)
    return [
        Matrix((parameter.shape[0], parameter.shape[1]), shard_of(parameter), piece, None if by_one else group)
        for parameter, piece, by_one in zip(parameters, pieces, alone, strict=True)
    ]


def _held_alone(parameters: Sequence[nn.Parameter], pieces: Sequence[Piece | None], group: ProcessGroup) -> list[bool]:
    """Whether one data-parallel rank holds all of a part; a collective call.

    Parts of one matrix are gathered on all ranks or on none: where they are of unequal sizes their partitions differ.
    """
    if dist.get_world_size(group) == 1:
        return [True] * len(parameters)
    held = torch.tensor([0 if piece is None else piece.elements for piece in pieces], device=parameters[0].device)
    dist.all_reduce(held, dist.ReduceOp.MAX, group=group)
    whole = zip(held.tolist(), parameters, strict=True)
    return [shard_of(parameter) is None and most == parameter.numel() for most, parameter in whole]


def _zero_3(wrapped: Any, parameters: Sequence[nn.Parameter]) -> dict[Tensor, list[Matrix]]:
    found: dict[Tensor, list[Matrix]] = {}
    for parameter in parameters:
        number, offset, _ = wrapped.grad_position[wrapped.get_param_id(parameter)]
        group, elements = parameter.ds_process_group, parameter.ds_numel  # type: ignore[attr-defined]
        size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        first = size * dist.get_rank(group)
        held = min(size, elements - first)  # the last partitions are padded
        piece = Piece(first, held, offset) if held > 0 else None
        rows, columns = parameter.ds_shape  # type: ignore[attr-defined]
        alone = dist.get_world_size(group) == 1
        matrix = Matrix((rows, columns), shard_of(parameter), piece, None if alone else group)
        found.setdefault(wrapped.fp32_partitioned_groups_flat[number], []).append(matrix)
    return found
