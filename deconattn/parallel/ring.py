"""Softmax attention over rows that several ranks share, none of which ever has more than a few parts of them.

A rank keeps its own queries, keys, values, results and log-sum-exps. What it computes with others' comes and goes by
rounds (:mod:`deconattn.parallel.rounds`), the next round's on its way while one is computed. In the backward pass it
comes again; gradients go back to whom they belong, in the format of what they are of, and are summed there in at least
fp32.

`staticemb` sends keys like the others. They could be computed again from token ids, 2 hidden_size FLOPs for an element
of 2 bytes: half of what most ranks send forward and a quarter of it backward, where their gradients come back. At
hidden_size 4096 an H100 (4e14 FLOP/s) takes 20 ps for that; the two bytes take 4 ps over NVLink (450 GB/s) and 40 ps
over InfiniBand (50 GB/s), beside the computing in either case, as the FLOPs are not. It would also want the embedding
on every rank at every layer, which ZeRO-3, pipeline stages and a vocabulary that is cut do not have. So it is not done.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from deconattn.ops import ring_attention
from deconattn.ops.compiling import outside_graphs
from deconattn.ops.documents import Documents
from deconattn.ops.precision import at_least_fp32, outside_autocast
from deconattn.parallel.rounds import Plan, Seen, Task, plan

Tensors = tuple[Tensor, ...]


class Ring:
    """Ranks of a group that attend over the rows that they share.

    Args:
        group: in the order of the parts.
        rank, size: of this one in it.
    """

    def __init__(self, group: ProcessGroup, rank: int, size: int) -> None:
        self.group, self.rank, self.size = group, rank, size
        self._plans: WeakKeyDictionary[Documents, Plan] = WeakKeyDictionary()
        self._met = False

    def plan(self, length: int, documents: Documents | None) -> Plan:
        """Return the plan for parts of `length` tokens; one serves all layers that mix the same rows."""
        if documents is None:
            return plan(self.rank, self.size, length, None)
        if documents not in self._plans:
            self._plans[documents] = plan(self.rank, self.size, length, documents)
        return self._plans[documents]

    def meet(self, device: torch.device) -> None:
        """Meet all others once: the first exchange in a group of NCCL's must not be one of some of its ranks."""
        if device.type == "cuda" and not self._met:
            dist.barrier(self.group, device_ids=[device.index])
            self._met = True


@outside_graphs
@outside_autocast("queries", "keys", "values")
def attend(queries: Tensor, keys: Tensor, values: Tensor, ring: Ring, documents: Documents | None) -> Tensor:
    """Causal attention of this rank's queries over the keys and values of all ranks.

    Args:
        queries: [R, heads, L / size, head_dim], rotated.
        keys, values: [R, key_value_heads, L / size, head_dim or x], of the same tokens.
        documents: of the whole rows.

    Returns:
        [R, heads, L / size, x].
    """
    mixed: Tensor = _Attention.apply(queries, keys, values, ring, documents)
    return mixed


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, ring: Ring, documents: Documents | None
    ) -> Tensor:
        ring.meet(queries.device)
        ctx.ring, ctx.plan = ring, ring.plan(queries.shape[2], documents)
        passing = _Forward(ctx.plan, queries, keys, values)
        _run(ring, ctx.plan.rounds, passing)
        mixed = passing.mixed.to(values.dtype)
        ctx.save_for_backward(queries, keys, values, mixed, passing.lse)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, values, mixed, lse = ctx.saved_tensors  # which checkpointing gives once
        passing = _Backward(ctx.plan, queries, keys, values, mixed, lse, grad)
        _run(ctx.ring, ctx.plan.rounds, passing)
        of_queries, of_keys, of_values = passing.gradients
        return of_queries.to(queries.dtype), of_keys.to(keys.dtype), of_values.to(values.dtype), None, None


class _Pass(ABC):
    """One pass over a plan, of tensors [R, heads, T, x] or [R, heads, T].

    What a task takes and gives has the same shapes on both of its ranks.
    """

    @abstractmethod
    def own(self) -> None:
        """Compute what the rank's own part has of itself."""

    @abstractmethod
    def inputs(self, task: Task) -> Tensors:
        """Return what a task takes of the rank that does not do it, from this rank's tensors."""

    @abstractmethod
    def results(self, task: Task) -> Tensors:
        """Return empty tensors for what a task gives that rank."""

    @abstractmethod
    def compute(self, task: Task, inputs: Tensors) -> Tensors:
        """Do a task, and return its results."""

    @abstractmethod
    def add(self, task: Task, results: Tensors) -> None:
        """Add the results of a task that another rank has done."""


class _Forward(_Pass):
    """Mixing.

    Attributes:
        mixed, lse: of this rank's queries, in at least fp32.
    """

    def __init__(self, plan: Plan, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        self._plan, self._queries, self._keys, self._values = plan, queries, keys, values

    def own(self) -> None:
        operands = self._queries, self._keys, self._values
        mixed, self.lse = ring_attention.attend(*operands, causal=True, documents=self._plan.own)
        self.mixed = at_least_fp32(mixed)

    def inputs(self, task: Task) -> Tensors:
        if task.at == task.later:
            return self._keys[task.of_keys], self._values[task.of_keys]
        return (self._queries[task.of_queries],)

    def results(self, task: Task) -> Tensors:
        if task.at == task.later:
            return ()
        mixed, lse = (tensor[task.of_queries] for tensor in (self.mixed, self.lse))
        return _empty(mixed, self._values.dtype), _empty(lse)

    def compute(self, task: Task, inputs: Tensors) -> Tensors:
        if task.at == task.later:
            queries, (keys, values) = self._queries[task.of_queries], inputs
        else:
            (queries,), keys, values = inputs, self._keys[task.of_keys], self._values[task.of_keys]
        results = self.results(task)
        for seen in task.seen:
            operands = queries[seen.of_queries], keys[seen.of_keys], values[seen.of_keys]
            mixed, lse = ring_attention.attend(*operands, causal=False)
            if task.at == task.later:
                self._merge(task, seen, mixed, lse)
            else:
                results[0][seen.of_queries], results[1][seen.of_queries] = mixed, lse
        return results

    def add(self, task: Task, results: Tensors) -> None:
        if task.at == task.earlier:  # else it is the other's queries that were mixed
            for seen in task.seen:
                mixed, lse = (result[seen.of_queries] for result in results)
                self._merge(task, seen, mixed, lse)

    def _merge(self, task: Task, seen: Seen, mixed: Tensor, lse: Tensor) -> None:
        so_far, its_lse = (tensor[task.of_queries][seen.of_queries] for tensor in (self.mixed, self.lse))
        ring_attention.merge_(so_far, its_lse, mixed, lse)


class _Backward(_Pass):
    """Its backward pass.

    Attributes:
        gradients: of this rank's queries, keys and values, in at least fp32.
    """

    gradients: Tensors

    def __init__(
        self, plan: Plan, queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor, lse: Tensor, grad: Tensor
    ) -> None:
        self._plan, self._keys, self._values = plan, keys, values
        self._of_queries = queries, mixed, lse, grad

    def own(self) -> None:
        queries, mixed, lse, grad = self._of_queries
        operands = queries, self._keys, self._values, mixed, lse, grad
        found = ring_attention.gradients(*operands, causal=True, documents=self._plan.own)
        self.gradients = tuple(at_least_fp32(gradient) for gradient in found)

    def inputs(self, task: Task) -> Tensors:
        if task.at == task.later:
            return self._keys[task.of_keys], self._values[task.of_keys]
        return tuple(tensor[task.of_queries] for tensor in self._of_queries)

    def results(self, task: Task) -> Tensors:
        if task.at == task.later:
            return _empty(self._keys[task.of_keys]), _empty(self._values[task.of_keys])
        return (_empty(self._of_queries[0][task.of_queries]),)

    def compute(self, task: Task, inputs: Tensors) -> Tensors:
        if task.at == task.later:
            (queries, mixed, lse, grad), (keys, values) = (one[task.of_queries] for one in self._of_queries), inputs
        else:
            (queries, mixed, lse, grad), keys, values = inputs, self._keys[task.of_keys], self._values[task.of_keys]
        results = self.results(task)
        for seen in task.seen:
            here, there = seen.of_queries, seen.of_keys
            operands = queries[here], keys[there], values[there], mixed[here], lse[here], grad[here]
            of_queries, of_keys, of_values = ring_attention.gradients(*operands, causal=False)
            if task.at == task.later:
                self.gradients[0][task.of_queries][here] += of_queries
                results[0][there], results[1][there] = of_keys, of_values
            else:
                self.gradients[1][there] += of_keys
                self.gradients[2][there] += of_values
                results[0][here] = of_queries
        return results

    def add(self, task: Task, results: Tensors) -> None:
        for seen in task.seen:
            if task.at == task.later:
                for gradient, result in zip(self.gradients[1:], results, strict=True):
                    gradient[seen.of_keys] += result[seen.of_keys]
            else:
                self.gradients[0][task.of_queries][seen.of_queries] += results[0][seen.of_queries]


def _run(ring: Ring, rounds: tuple[tuple[Task, ...], ...], work: _Pass) -> None:
    """Do all rounds: while one is computed the next one's inputs are on their way, and the last one's results."""
    inputs: list[Tensors] = []
    results: list[Tensors] = []
    for stage in range(len(rounds) + 2):
        coming, now, done = (rounds[i] if 0 <= i < len(rounds) else () for i in (stage, stage - 1, stage - 2))
        post = _Post(ring)
        next_inputs = [post.carry(work.inputs(task), task.other, task.at) for task in coming]
        back = [
            post.carry(found or work.results(task), task.at, task.other)
            for task, found in zip(done, results, strict=True)
        ]
        post.start()
        if stage == 0:
            work.own()
        mine = [task.at == ring.rank for task in now]
        results = [
            work.compute(task, given) if here else () for task, given, here in zip(now, inputs, mine, strict=True)
        ]
        post.wait()
        for task, found in zip(done, back, strict=True):
            if task.other == ring.rank:
                work.add(task, found)
        inputs = next_inputs


class _Post:
    """Tensors that set out together."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._operations: list[dist.P2POp] = []
        self._started: list[dist.Work] = []

    def carry(self, tensors: Tensors, source: int, target: int) -> Tensors:
        """Take tensors from one rank to another, this being one of them, which gives tensors as large.

        Returns:
            what is to arrive, where this is the target.
        """
        if self._ring.rank == source:
            sent = tuple(tensor.contiguous() for tensor in tensors)
            self._operations += [self._operation(dist.isend, tensor, target) for tensor in sent]
            return sent
        arriving = tuple(_empty(tensor) for tensor in tensors)
        self._operations += [self._operation(dist.irecv, tensor, source) for tensor in arriving]
        return arriving

    def start(self) -> None:
        self._started = dist.batch_isend_irecv(self._operations) if self._operations else []

    def wait(self) -> None:
        """Wait for all; on a GPU the stream does, not the host."""
        for work in self._started:
            work.wait()
        self._operations = []

    def _operation(self, kind: Callable[..., Any], tensor: Tensor, rank: int) -> dist.P2POp:
        return dist.P2POp(kind, tensor, group=self._ring.group, group_peer=rank)


def _empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(like.shape, dtype=dtype or like.dtype, device=like.device)
