# Made by DeconAttn 0.1.0 from its own source, for the layers of one model; there is no other copy of it to edit.
# Modules: deconattn.errors, deconattn.ops.precision, deconattn.ops.cached_attention, deconattn.ops.documents,
#     deconattn.ops.reference, deconattn.ops.plain, deconattn.ops.prefix_state, deconattn.layers.config,
#     deconattn.layers.rotary, deconattn.mixers.context, deconattn.mixers.cache, deconattn.mixers.decoding,
#     deconattn.mixers.map_blocks, deconattn.mixers.base, deconattn.mixers.projected, deconattn.mixers.registry,
#     deconattn.mixers.nonapproximate, deconattn.mixers.standard, deconattn.model.block, deconattn.model.streams,
#     deconattn.model.decoding_cache, deconattn.model.decoder, deconattn.model.padding,
#     deconattn.hf.cache_deconattn, deconattn.hf.configuration_deconattn, deconattn.hf.modeling_deconattn.
# Copyright (c) 2026 The DeconAttn authors. SPDX-License-Identifier: MIT
"""A DeconAttn model for Hugging Face transformers: its configuration, its layers, its classes.

Variants: nonapproximate, standard.

Plain PyTorch: it runs wherever transformers does, and trains by autograd. With the deconattn package installed and
imported, transformers runs the package's classes in the place of these, with its fused kernels.
"""

import dataclasses
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Linear
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint
from transformers import (
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
)
from transformers.utils import can_return_tuple

# ---- deconattn.errors ------------------------------------------------------------------------------------------------
# Exception that a user is meant to read.


class UserError(Exception):
    """Error in what the user gave: a flag, a file, a checkpoint, a topology.

    The message is one line that names the offender and the remedy. Command lines print it
    as ``error: MESSAGE`` and exit with code 2 (see `deconattn.cli`); no traceback.
    """


# ---- deconattn.ops.precision -----------------------------------------------------------------------------------------
# Precision of accumulations, log-sum-exps and normalisers: never half.


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Cast anything narrower than fp32 to fp32; fp32 and fp64 stay."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# ---- deconattn.ops.cached_attention ----------------------------------------------------------------------------------
# Attention of a few new tokens over tokens that are held: the steps of text generation.
#
# Slots of a row that lie behind its last token may hold anything finite; `visible` keeps them out. In each function
# queries are [R, heads, T, head_dim], keys and values [R, key_value_heads, N, head_dim], `visible` is bool
# [R or 1, T, N] or None where every new token sees every slot, and the result is [R, heads, T, head_dim] in the values'
# dtype.


FEW = 8
"""Queries of a key head up to which the fused kernels of a CPU gain nothing from having several."""


def cached_attention_softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V (standard, staticemb)."""
    grouped = cached_attention_by_key_head(queries, keys.shape[1])
    mask = _for_groups(visible, grouped.shape[2])
    if grouped.shape[2] <= FEW and _beyond_fused(keys):
        return _mix(_softmax(_cached_attention_scores(grouped, keys), mask), values).reshape(queries.shape)
    return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(queries.shape)


def cached_attention_by_key_head(queries: Tensor, key_value_heads: int) -> Tensor:
    """[R, heads, T, x] -> [R, key_value_heads, group T, x]: the queries that share a key, one behind another."""
    return queries.unflatten(1, (key_value_heads, -1)).flatten(2, 3)


def _beyond_fused(keys: Tensor) -> bool:
    """Whether two products and a softmax are faster than PyTorch's fused kernel: on a CPU, from some size on."""
    return keys.device.type == "cpu" and keys.numel() >= (2**17 if keys.dtype == torch.bfloat16 else 2**22)


def _for_groups(visible: Tensor | None, queries: int) -> Tensor | None:
    """[R, T, N] -> [R, 1, group T, N], as the queries of `by_key_head` lie."""
    return None if visible is None else visible.repeat(1, queries // visible.shape[1], 1)[:, None]


def _cached_attention_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """q.k / sqrt(head_dim) in at least fp32: [R, k, n, x], [R, k, N, x] -> [R, k, n, N]."""
    if queries.device.type == "cpu":  # bf16: four times faster with the many keys on the left
        products = _batched(keys, queries.transpose(-1, -2)).transpose(-1, -2)
    else:
        products = queries @ keys.transpose(-1, -2)
    return at_least_fp32(products) / math.sqrt(queries.shape[-1])


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(dim=-1)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """[R or 1, k, n, N] @ [R, k, N, x] -> [R, k, n, x]."""
    return _batched(weights.to(values.dtype), values)


def _batched(left: Tensor, right: Tensor) -> Tensor:
    """left @ right. On a CPU PyTorch copies a bf16 batch that is a slice of a longer one; a row of it, it need not."""
    rows = max(len(left), len(right))
    if rows == 1 or left.dtype != torch.bfloat16 or left.device.type != "cpu":
        return left @ right
    return torch.stack([left[row % len(left)] @ right[row % len(right)] for row in range(rows)])


# ---- deconattn.ops.documents -----------------------------------------------------------------------------------------
# Document boundaries of packed rows: the one description that every mixing path reads.


@dataclass(frozen=True, eq=False)
class Documents:
    """Document boundaries of packed rows; mixing stays within a document.

    Attributes:
        ids: int64 [R, L], non-decreasing along a row; equal ids are one document.
        position_ids: int64 [R, L], the position within the document.
    """

    ids: Tensor
    position_ids: Tensor

    def rows(self, count: int) -> "Documents":
        """The first `count` rows."""
        if count == len(self.ids):  # keeps what is cached
            return self
        return Documents(self.ids[:count], self.position_ids[:count])

    @cached_property
    def causal_mask(self) -> Tensor:
        """bool [R, 1, L, L], true where query i may see key j: same document and j <= i.

        Cached: one mask serves every layer of a forward pass.
        """
        same = self.ids[:, None, :, None] == self.ids[:, None, None, :]
        return same.tril_()


# ---- deconattn.ops.reference -----------------------------------------------------------------------------------------
# The paper's attention maps, as it writes them (section 3): plainly right, exact in float64, quadratic.
#
# The operations below the maps are the `reference` backend (`deconattn.ops.backend`).
#
# Every map A is [.., L, L], causal, rows summing to one; the mixed output is A @ V. Queries and keys are
# [.., L, head_dim], already rotated. `documents` (int64 [.., L], broadcastable) restricts a row to its document.


def reference_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """s_ij = q_i . k_j / sqrt(head_dim), [.., L, L] (equation 1)."""
    return queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])


def reference_token_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """s_j = sum(q_j * k_j) / sqrt(head_dim), [.., L]: nonapproximate (queries already through SiLU)."""
    return (queries * keys).sum(dim=-1) / math.sqrt(queries.shape[-1])


def per_query_head(shared: Tensor, heads: int) -> Tensor:
    """[.., key_value_heads, L, x] -> [.., heads, L, x]: each key or value head beside the queries that it serves."""
    group = heads // shared.shape[-3]
    if group == 1:
        return shared
    if torch.compiler.is_compiling():  # after repeat_interleave torch 2.11 guards on the length
        return shared.index_select(-3, torch.arange(heads, device=shared.device) // group)
    return shared.repeat_interleave(group, dim=-3)


# ---- deconattn.ops.plain ---------------------------------------------------------------------------------------------
# The mixing operations in plain PyTorch, without a backward pass of their own: what an exported model carries.
#
# Any device, any dtype, torch.compile and torch.export; the formulas are those of text generation
# (`deconattn.ops.cached_attention`), applied to some rows of the map at a time. In training a block of rows is made
# again for its gradients, so that memory is linear in the length. Time is quadratic, for `nonapproximate`, too.


ROWS = 256
"""Rows of a map that are held at once."""


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V with a causal (and document) mask, by PyTorch's fused kernels.

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim]; each serves heads / key_value_heads query heads.

    Returns:
        [R, heads, L, head_dim].
    """
    group = queries.shape[1] // keys.shape[1]
    if documents is None:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=group > 1)
    if group > 1:  # fused kernels take a mask or groups, not both
        keys, values = (per_query_head(shared, queries.shape[1]) for shared in (keys, values))
    return scaled_dot_product_attention(queries, keys, values, attn_mask=documents.causal_mask)


def prefix_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} exp(s_j) v_j / sum_{j<=i} exp(s_j) with s_j = sum(silu(q_j) * k_j) / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim], before SiLU.
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype. Scores and log-sum-exps are at least fp32.
    """
    keys = at_least_fp32(per_query_head(keys, queries.shape[1]))
    return prefix_average(reference_token_scores(silu(at_least_fp32(queries)), keys), values, document_ids)


def prefix_average(scores: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Average of the values so far, weighted by exp(score).

    Args:
        scores: [R, heads, L].
        values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype.
    """
    values = _in_a_graph_per_query_head(values, scores.shape[1])

    def rows(start: int, stop: int) -> Tensor:
        hidden = ~_visible(start, stop, scores.device, document_ids)[:, None]
        weights = at_least_fp32(scores[:, :, None, :stop]).masked_fill(hidden, -torch.inf).softmax(dim=-1)
        served = cached_attention_by_key_head(weights, values.shape[1])
        mixed = served @ at_least_fp32(values[:, :, :stop])
        return mixed.to(values.dtype).reshape(*weights.shape[:3], values.shape[3])

    return _some_rows_at_a_time(rows, scores.shape[2])


def _some_rows_at_a_time(rows: Callable[[int, int], Tensor], length: int) -> Tensor:
    """[R, heads, L, x] from `rows`(start, stop), its part [R, heads, stop - start, x]."""
    if torch.compiler.is_compiling() or length <= ROWS:  # one graph for all lengths
        return rows(0, length)
    parts = []
    for start in range(0, length, ROWS):
        stop = min(start + ROWS, length)
        if torch.is_grad_enabled():
            parts.append(checkpoint(rows, start, stop, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(rows(start, stop))
    return torch.cat(parts, dim=2)


def _in_a_graph_per_query_head(shared: Tensor, heads: int) -> Tensor:
    """Keys or values [.., key_value_heads, L, x], in a graph beside the queries they serve: [.., heads, L, x].

    How queries that share a key can be put behind one another depends on the length; a graph is for all lengths.
    """
    return per_query_head(shared, heads) if torch.compiler.is_compiling() else shared


def _visible(start: int, stop: int, device: torch.device, document_ids: Tensor | None = None) -> Tensor:
    """bool [R or 1, stop - start, stop]: the tokens up to `stop` that each from `start` on sees."""
    tokens = torch.arange(stop, device=device)
    causal = (tokens <= tokens[start:, None])[None]
    if document_ids is None:
        return causal
    return causal & (document_ids[:, start:stop, None] == document_ids[:, None, :stop])


# ---- deconattn.ops.prefix_state --------------------------------------------------------------------------------------
# The running average of `nonapproximate`: all that it needs of earlier tokens (paper, section 3.1).
#
# Of a row and head: the average of the values so far weighted by exp(score), [R, heads, head_dim], and the logarithm of
# the weights' sum, [R, heads]. A token moves the average towards its value by its share of the sum. Both are at least
# fp32.


NOTHING = -1e30
"""The log-sum of no tokens: finite, so that the difference of two is a number; beside any score it counts nothing."""


def prefix_state_step(scores: Tensor, values: Tensor, average: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """The state after one more token.

    Args:
        scores: [R, heads]
        values: [R, heads, head_dim]
    """
    total = torch.logaddexp(log_sum, scores)
    return torch.lerp(average, at_least_fp32(values), (scores - total).exp()[..., None]), total


def prefix_state_summarise(scores: Tensor, values: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state after T tokens and nothing before them.

    Args:
        scores: [R, heads, T]
        values: [R, heads, T, head_dim]
        real: bool [R, T] or None: the tokens that count.
    """
    if real is not None:
        scores = scores.masked_fill(~real[:, None], NOTHING)
    average = (scores.softmax(dim=-1)[..., None, :] @ at_least_fp32(values)).squeeze(-2)
    return average, scores.logsumexp(dim=-1)


def prefix_state_merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The state of both stretches of tokens."""
    total = torch.logaddexp(first[1], second[1])
    return torch.lerp(first[0], second[0], (second[1] - total).exp()[..., None]), total


def prefix_state_continued_average(scores: Tensor, values: Tensor, average: Tensor, log_sum: Tensor) -> Tensor:
    """The average at each of T tokens that follow the state: [R, heads, T], [R, heads, T, x] -> [R, heads, T, x]."""
    sums = scores.logcumsumexp(dim=-1)
    share = (sums - torch.logaddexp(log_sum[..., None], sums)).exp()[..., None]
    return torch.lerp(average[..., None, :], prefix_average(scores, at_least_fp32(values)), share).to(values.dtype)


# ---- deconattn.layers.config -----------------------------------------------------------------------------------------
# Model configuration: dimensions and the variant of each layer, under Hugging Face's names.


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of one model; checked at construction.

    Raises:
        UserError: a dimension that cannot be, with its remedy.
    """

    vocab_size: int
    """Rows of the embedding table and of the head."""
    hidden_size: int
    """Width d of the residual stream."""
    intermediate_size: int
    """Width of the SwiGLU feed-forward block."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    """Fewer than `num_attention_heads` is grouped-query attention."""
    head_dim: int
    max_position_embeddings: int
    """Longest sequence; also the length of the fixed stream."""
    layer_variants: tuple[str, ...]
    """The variant of each layer, first layer first."""
    attention_bias: bool = True
    """Bias on Q, K and V (Qwen2); none elsewhere."""
    qk_norm: bool = False
    """RMSNorm over each head's query and key (Qwen3)."""
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}: choose a divisor"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd: rotary embeddings need an even one")
        if len(self.layer_variants) != self.num_hidden_layers:
            raise UserError(
                f"layer_variants names {len(self.layer_variants)} layers but num_hidden_layers is "
                f"{self.num_hidden_layers}: give one variant a layer"
            )

    @property
    def query_size(self) -> int:
        """Width of all query heads side by side."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads side by side."""
        return self.num_key_value_heads * self.head_dim


# ---- deconattn.layers.rotary -----------------------------------------------------------------------------------------
# Rotary position embeddings, in Hugging Face's half-rotated layout.


# Objects of tensors compare and hash by identity: == of tensors has no truth value, and the compiler of torch 2.11 and
# 2.12 takes the hash of an object that is called before it has set the object's fields.
@dataclass(frozen=True, eq=False)
class Rotary:
    """Cosines and sines of every row's positions.

    Attributes:
        cos, sin: [R, 1, L, head_dim], or [1, 1, L, head_dim] where all rows count alike.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, config: ModelConfig, position_ids: Tensor, dtype: torch.dtype) -> "Rotary":
        """Compute for int64 positions [R or 1, L]; angles in fp32 (fp64 for fp64), the result in `dtype`."""
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        exponents = torch.arange(0, config.head_dim, 2, dtype=precise, device=position_ids.device) / config.head_dim
        angles = position_ids[..., None].to(precise) / config.rope_theta**exponents
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def __call__(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys, [R, heads, L, head_dim] each."""
        return self._rotate(queries), self._rotate(keys)

    def _rotate(self, heads: Tensor) -> Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * self.cos + torch.cat([-second, first], dim=-1) * self.sin

    def rows(self, count: int) -> "Rotary":
        """Return those of the first `count` rows."""
        return self if len(self.cos) == 1 else Rotary(self.cos[:count], self.sin[:count])


# ---- deconattn.mixers.context ----------------------------------------------------------------------------------------
# Context of a layer: what it may know of the batch beside the hidden states.


FixedStream = Literal["random", "text"]


@dataclass(frozen=True, eq=False)
class MixerContext:
    """Positions, document boundaries and fixed streams of the batch, which each layer gets beside the hidden states.

    Rows are the batch's sequences followed by the fixed streams, each a sequence like any other.

    Attributes:
        rotary: cosines and sines of every row's positions.
        documents: boundaries in packed rows, or None where a row is one document.
        fixed_rows: row of each fixed stream that the model carries, counted from the end (-1 is the last).
        output_rows: how many rows of the result anyone reads, from the first; None is all. A mixer need not compute
            the others, and may leave them out.
    """

    rotary: Rotary
    documents: Documents | None
    fixed_rows: dict[FixedStream, int]
    output_rows: int | None = None

    @property
    def document_ids(self) -> Tensor | None:
        """Document number of each token, int64 [R, L]; None where a row is one document."""
        return None if self.documents is None else self.documents.ids

    def rows(self, count: int) -> "MixerContext":
        """Return the context of the first `count` rows alone, once no later layer reads the fixed streams."""
        documents = None if self.documents is None else self.documents.rows(count)
        return MixerContext(self.rotary.rows(count), documents, {})


# ---- deconattn.mixers.cache ------------------------------------------------------------------------------------------
# Decoding cache of one layer: what it keeps of the tokens so far while text is generated.
#
# Rows are sequences. A token of a row has a slot, its position in the row: padding takes none, so that a row's slots
# are filled from the first on, whatever side its prompt was padded on. What lies in the slots behind a row's last token
# has no meaning, and causal mixing never reads it.


@dataclass(frozen=True, eq=False)
class Step:
    """Position of a cached forward pass: T new tokens a row, in the slots after those that the row has filled.

    Attributes:
        rotary: cosines and sines of the new tokens' positions.
        first: nothing is held yet; the new tokens are in slots 0 to T-1.
        past: slots that are filled; where rows differ, in the longest at most.
        positions: int64 [R, T], slots of the new tokens; None where all rows fill `past` to `past` + T - 1.
        real: bool [R, T], false where a new token is padding; it comes after the row's real ones. None: all are real.
        window: slots that the new tokens may see, from the first.
        capacity: slots to hold memory for.
        static: tensors keep their shapes and addresses from the second pass on (torch.compile, CUDA graphs).
    """

    rotary: Rotary
    first: bool
    past: int
    positions: Tensor | None
    real: Tensor | None
    window: int
    capacity: int
    static: bool

    def visible(self, tokens: int) -> Tensor | None:
        """Return the attention mask of the new tokens, bool [R or 1, tokens, window]; None if they see all slots."""
        if self.positions is None:
            if tokens == 1:
                return None
            last = torch.arange(self.past, self.past + tokens, device=self.rotary.cos.device)[None]
        else:
            last = self.positions
        return torch.arange(self.window, device=last.device) <= last[..., None]


class LayerCache:
    """Named tensors, rows first. A mixer makes an empty one and fills it in its cached passes.

    Attributes:
        fixed: what the layer needs of the fixed streams (`Mixer.fixed_part`), shared by all caches of a model.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.fixed: tuple[Tensor, ...] = ()

    @property
    def croppable(self) -> bool:
        """Whether the last tokens can be taken back: a cache of tokens forgets by not reading, a sum cannot."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes held, without what all caches of a model share."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def append(self, name: str, new: Tensor, step: Step) -> Tensor:
        """Put `new` [R, n, T, x] into its slots of the tensor `name` [R, n, capacity, x]; returns its window's part.

        No gradient flows through a cache.
        """
        held = self.tensors.get(name)
        if held is None or held.shape[2] < step.capacity:
            # Slots that nobody filled get weights of zero, and zero times what memory happens to hold may be NaN.
            larger = new.new_zeros(*new.shape[:2], step.capacity, new.shape[3])
            if held is not None:
                larger[:, :, : held.shape[2]] = held
            held = self.keep(name, larger, step)
        if step.positions is None:
            held[:, :, step.past : step.past + new.shape[2]] = new.detach()
        else:
            held.scatter_(2, step.positions[:, None, :, None].expand_as(new), new.detach())
        return held[:, :, : step.window]

    def keep(self, name: str, value: Tensor, step: Step) -> Tensor:
        """Hold `value` as the tensor `name`."""
        held = self.tensors.get(name)
        if step.static and held is not None:
            return held.copy_(value.detach())
        if step.static and value.device.type == "cuda":
            torch._dynamo.mark_static_address(value)
        self.tensors[name] = value.detach()
        return self.tensors[name]

    def select_rows(self, rows: Tensor) -> None:
        """Reorder rows: row i becomes row rows[i], int64 [R']; R' may differ from R. In place where R' is R."""
        for name, tensor in self.tensors.items():
            selected = tensor.index_select(0, rows.to(tensor.device))
            self.tensors[name] = tensor.copy_(selected) if selected.shape == tensor.shape else selected

    def reset(self) -> None:
        """Drop all tokens."""
        self.tensors.clear()


class SumCache(LayerCache):
    """A cache that is a sum over the tokens."""

    @property
    def croppable(self) -> bool:
        return False


def new_tokens_of(whole: Tensor, step: Step, tokens: int) -> Tensor:
    """Select the new tokens' slots: [R, window, x] -> [R, tokens, x]."""
    if step.positions is None:
        return whole[:, step.past : step.past + tokens]
    return whole.gather(1, step.positions[..., None].expand(-1, -1, whole.shape[-1]))


# ---- deconattn.mixers.decoding ---------------------------------------------------------------------------------------
# Decoding of a mixer: its forward pass with a cache, the cache and their costs, as one object.


AnyMixer = TypeVar("AnyMixer", bound="Mixer")


class Decoding(Generic[AnyMixer]):
    """Decoding for any causal mixer: the whole sequence is cached and mixed again.

    A subclass keeps and computes less. It has no state: what it holds of a sequence is in the cache that
    `new_cache` makes.
    """

    def new_cache(self) -> LayerCache:
        """Return an empty cache, for `extend` to fill."""
        return LayerCache()

    def extend(self, mixer: AnyMixer, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        """Run the mixer's forward pass for tokens that continue those in the cache, which then holds them too.

        What padding's outputs are does not matter.

        Args:
            hidden: [R, T, d], normed hidden states of the new tokens; fixed streams have no rows here.
            static: [R, T, d], their embeddings through the same norm, or None if no layer needs them.

        Returns:
            [R, T, d].
        """
        whole = cache.append("hidden", hidden[:, None], step)[:, 0]
        if mixer.needs_static_embeddings:
            assert static is not None
            static = cache.append("static", static[:, None], step)[:, 0]
        positions = torch.arange(step.window, device=hidden.device)[None]
        context = MixerContext(Rotary.of(mixer.config, positions, hidden.dtype), None, {})
        if mixer.fixed_stream is not None:
            parts = [part[:, : step.window] for part in cache.fixed]
            whole = torch.cat([whole, parts[0]])
            static = None if static is None else torch.cat([static, parts[1]])
            context = replace(context, fixed_rows={mixer.fixed_stream: -1})
        # The class's forward: while hooks run, the instance's is this very method.
        mixed = type(mixer).forward(mixer, whole, static, context)[: len(hidden)]
        return new_tokens_of(mixed, step, hidden.shape[1])

    def fixed_part(
        self, mixer: AnyMixer, hidden: Tensor, static: Tensor | None, context: MixerContext
    ) -> tuple[Tensor, ...]:
        """Compute what `extend` needs of the fixed streams: once per model, found in `cache.fixed`.

        Args:
            hidden: [S, L, d], normed hidden states of the fixed streams alone, in `context.fixed_rows`.
            static: [S, L, d] or None.

        Returns:
            Tensors [n, L, x].
        """
        if mixer.fixed_stream is None:
            return ()
        row = context.fixed_rows[mixer.fixed_stream]
        sources = (hidden, static) if mixer.needs_static_embeddings else (hidden,)
        return tuple(source[row].unsqueeze(0) for source in sources if source is not None)


# ---- deconattn.mixers.map_blocks -------------------------------------------------------------------------------------
# Attention maps in blocks of rows, for analysis that cannot hold a whole map.


class MapBlock(NamedTuple):
    """Rows start .. stop - 1 of a map, and their activations before the softmax.

    Attributes:
        weights: [R, heads, stop - start, stop]: the map is causal, so no key from `stop` on has a weight.
        scores: [R, heads, n, m], over all blocks each activation once, -inf where there is none; None where a mixer
            has none to show.
    """

    weights: Tensor
    scores: Tensor | None

    @property
    def start(self) -> int:
        """The first row."""
        return self.stop - self.weights.shape[-2]

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.weights.shape[-1]


def cut(whole: Tensor, size: int) -> Iterator[MapBlock]:
    """Cut a map [R, heads, L, L] into blocks of `size` rows, the last maybe fewer."""
    for start, stop in _spans(whole.shape[-1], size):
        yield MapBlock(whole[..., start:stop, :stop], None)


def softmax_blocks(queries: Tensor, keys: Tensor, documents: Tensor | None, size: int) -> Iterator[MapBlock]:
    """Yield blocks of `deconattn.ops.reference.softmax_map` and scores s_ij; Q and K [R, heads, L, head_dim]."""
    for scores, _ in _map_blocks_scores(queries, keys, documents, size):
        yield MapBlock(scores.softmax(dim=-1), scores)


def prefix_blocks(token_scores: Tensor, documents: Tensor | None, size: int) -> Iterator[MapBlock]:
    """Yield blocks of `deconattn.ops.reference.prefix_map` and their token scores, given [R, heads, L]."""
    for start, stop in _spans(token_scores.shape[-1], size):
        hidden = _hidden(start, stop, documents, token_scores.device)
        rows = token_scores[..., None, :stop].masked_fill(hidden, -math.inf)
        yield MapBlock(rows.softmax(dim=-1), token_scores[..., start:stop, None])


def _map_blocks_scores(
    queries: Tensor, keys: Tensor, documents: Tensor | None, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (s_ij, -inf where key j is hidden from query i; the mask of what is hidden), block by block."""
    for start, stop in _spans(queries.shape[-2], size):
        hidden = _hidden(start, stop, documents, queries.device)
        scores = reference_scores(queries[..., start:stop, :], keys[..., :stop, :])
        yield scores.masked_fill(hidden, -math.inf), hidden


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _hidden(start: int, stop: int, documents: Tensor | None, device: torch.device) -> Tensor:
    """Return where keys are hidden, bool [.., stop - start, stop]: not `deconattn.ops.reference.allowed`."""
    columns = torch.arange(stop, device=device)
    hidden = columns > columns[start:, None]
    if documents is None:
        return hidden
    return hidden | (documents[..., start:stop, None] != documents[..., None, :stop])


# ---- deconattn.mixers.base -------------------------------------------------------------------------------------------
# Contract of a mixer: everything that depends on the variant of a layer, and nothing else does.
#
# A variant is one file: a subclass of `Mixer` (or of `~deconattn.mixers.projected.ProjectedMixer`, which
# has the four projections of multi-head attention) under `deconattn.mixers.register`. Training, parameter matching,
# FLOPs, analysis and export then work with it; `tests/mixers/test_contract.py` runs over every registered name.


class Mixer(nn.Module, ABC):
    """Token mixer of one layer: [R, L, hidden_size] -> [R, L, hidden_size].

    Parameters carry Hugging Face names; the module is a block's `self_attn`.
    """

    fixed_stream: ClassVar[FixedStream | None] = None
    """Fixed stream that the layer reads beside the hidden states, carried as an extra row."""
    needs_static_embeddings: ClassVar[bool] = False
    """Whether the layer reads the token embeddings (through its own input norm)."""
    decoding: ClassVar[Decoding[Any]] = Decoding()
    """Decoding that continues a sequence as `forward` would: by default the whole is mixed again."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        """Mix tokens.

        Args:
            hidden: [R, L, d], normed hidden states, the fixed streams' rows last.
            static: [R, L, d], the token embeddings through the same norm, or None if no layer needs them.

        Returns:
            [R, L, d]: what the residual stream receives, for every row or the first `context.output_rows`.
        """

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor | None:
        """Return the map A that `forward` applies, [R, heads, L, L]; None if nothing is mixed.

        A class gives this or `map_blocks`; each follows from the other.
        """
        blocks = [*self.map_blocks(hidden, static, context, hidden.shape[1])]
        return blocks[0].weights if blocks else None

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        """Yield `attention_map` in blocks of `size` rows, first rows first; no block if nothing is mixed.

        A class that gives it holds one block at a time, and shows the activations before the softmax.
        """
        whole = self.attention_map(hidden, static, context)
        if whole is not None:
            yield from cut(whole, size)


# ---- deconattn.mixers.projected --------------------------------------------------------------------------------------
# The four projections of multi-head attention, which most variants share.


class ProjectedMixer(Mixer):
    """A mixer with multi-head attention's projections: q, k, v, o, and query/key norms where configured.

    Heads do not meet before the output projection, so tensor parallelism gives each rank some of them: what a
    subclass computes must not depend on how many heads it sees.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.q_proj = Linear(config.hidden_size, config.query_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.o_proj = Linear(config.query_size, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def queries_keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Map [R, L, d] to queries [R, heads, L, head_dim] and keys [R, key_value_heads, L, head_dim], not rotated."""
        queries = self.q_proj(source).unflatten(-1, (-1, self.config.head_dim))
        keys = self.k_proj(source).unflatten(-1, (-1, self.config.head_dim))
        if self.config.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return queries.transpose(1, 2), keys.transpose(1, 2)

    def values(self, hidden: Tensor) -> Tensor:
        """Project to values: [R, L, d] -> [R, key_value_heads, L, head_dim]."""
        return self.v_proj(hidden).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def output(self, mixed: Tensor) -> Tensor:
        """Join heads and project: [R, heads, L, head_dim] -> [R, L, d]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))

    def per_query_head(self, shared: Tensor) -> Tensor:
        """Repeat key or value heads for grouped queries: [.., key_value_heads, L, x] -> [.., heads, L, x]."""
        group = self.q_proj.out_features // self.k_proj.out_features
        return per_query_head(shared, shared.shape[-3] * group)


# ---- deconattn.mixers.registry ---------------------------------------------------------------------------------------
# Variants by name, and the check of a class when it is registered.


MixerClass = TypeVar("MixerClass", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}


def known_as(name: str) -> Callable[[MixerClass], MixerClass]:
    """Register a class without checking it; an export has this in the place of `register`."""

    def add(mixer: MixerClass) -> MixerClass:
        known = _REGISTRY.get(name)
        if known is not None and _place(known) != _place(mixer):
            raise ValueError(
                f"variant {name!r} is already registered by {_place(known)}, and {_place(mixer)} is another: give it "
                "another name, or use the two in processes of their own"
            )
        _REGISTRY[name] = mixer
        return mixer

    return add


def _place(mixer: type[Mixer]) -> str:
    """Return file and name of a class."""
    file = getattr(sys.modules.get(mixer.__module__), "__file__", None)
    return f"{mixer.__qualname__} in {file or mixer.__module__}"


def mixer_class(name: str) -> type[Mixer]:
    """Return the mixer registered as `name` (KeyError if there is none)."""
    return _REGISTRY[name]


def variant_names() -> tuple[str, ...]:
    """Return all registered names, in order of registration."""
    return tuple(_REGISTRY)


# ---- deconattn.mixers.nonapproximate ---------------------------------------------------------------------------------
# Non-approximate: one score a token, softmax over the prefix (paper, section 3.1).


class SumDecoding(Decoding["NonApproximate"]):
    """Decoding that caches the weighted average over the tokens so far and its log-sum-exp."""

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(
        self, mixer: "NonApproximate", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        queries, keys = mixer.queries_keys(hidden)
        values = mixer.per_query_head(mixer.values(hidden))
        keys = mixer.per_query_head(keys)
        scores = reference_token_scores(silu(at_least_fp32(queries)), at_least_fp32(keys))
        if step.first:
            mixed = prefix_attention(queries, keys, values)
            state = prefix_state_summarise(scores, values, step.real)
        else:
            held = cache.tensors["average"], cache.tensors["log_sum"]
            if queries.shape[2] == 1:
                state = prefix_state_step(scores[..., 0], values[:, :, 0], *held)
                mixed = state[0][:, :, None].to(values.dtype)
            else:
                mixed = prefix_state_continued_average(scores, values, *held)
                state = prefix_state_merge(held, prefix_state_summarise(scores, values, step.real))
        cache.keep("average", state[0], step)
        cache.keep("log_sum", state[1], step)
        return mixer.output(mixed)


@known_as("nonapproximate")
class NonApproximate(ProjectedMixer):
    """A_ij = exp(s_j) / sum_{m<=i} exp(s_m), s_j = sum(silu(q_j) * k_j) / sqrt(head_dim).

    q and k meet at the same position, where rotary embeddings cancel: none are applied.
    """

    decoding = SumDecoding()

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.queries_keys(hidden)
        return self.output(prefix_attention(queries, keys, self.values(hidden), context.document_ids))

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = self.queries_keys(hidden)
        documents = None if context.documents is None else context.documents.ids[:, None]
        return prefix_blocks(reference_token_scores(silu(queries), self.per_query_head(keys)), documents, size)


# ---- deconattn.mixers.standard ---------------------------------------------------------------------------------------
# Standard: softmax attention over the layer's own hidden states (paper, section 2).


class KeyValueDecoding(Decoding["Standard"]):
    """Decoding that caches every token's keys and values."""

    def extend(self, mixer: "Standard", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        queries, keys = step.rotary(*mixer.queries_keys(mixer.source(hidden, static)))
        values = mixer.values(hidden)
        held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
        if step.first:
            return mixer.output(causal_attention(queries, keys, values))
        visible = step.visible(queries.shape[2])
        return mixer.output(cached_attention_softmax_attention(queries, held_keys, held_values, visible))


@known_as("standard")
class Standard(ProjectedMixer):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from H."""

    decoding = KeyValueDecoding()

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(self.source(hidden, static)))
        return self.output(causal_attention(queries, keys, self.values(hidden), context.documents))

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = context.rotary(*self.queries_keys(self.source(hidden, static)))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return softmax_blocks(queries, self.per_query_head(keys), documents, size)

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        """Return the input of the query and key projections, [R, L, d]."""
        return hidden


# ---- deconattn.model.block -------------------------------------------------------------------------------------------
# Pre-norm Transformer block (Qwen2's): the mixer, then a SwiGLU feed-forward.


class FeedForward(nn.Module):
    """Down(SiLU(Gate(x)) * Up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Block(nn.Module):
    """Pre-norm Transformer block: [R, L, d] -> [R, L, d]."""

    def __init__(self, config: ModelConfig, variant: str) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = mixer_class(variant)(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, hidden: Tensor, static: Tensor | None, context: MixerContext | Step, cache: LayerCache | None = None
    ) -> Tensor:
        """Return hidden states of all rows, or of the first `context.output_rows` where that is given.

        Args:
            static: [R, L, d], the token embeddings, or None; they pass the same input norm as the hidden states.
            context: a `Step` with a cache, whose tokens these continue.
        """
        inputs = self.mixer_inputs(hidden, static)
        if isinstance(context, Step):
            assert cache is not None
            hidden = hidden + _with_hooks(self.self_attn, self._extend)(*inputs, context, cache)
        else:
            mixed = self.self_attn(*inputs, context)
            hidden = hidden[: context.output_rows] + mixed[: context.output_rows]
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def _extend(self, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        return self.self_attn.decoding.extend(self.self_attn, hidden, static, step, cache)

    def mixer_inputs(self, hidden: Tensor, static: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Apply the input norm to both; None for static embeddings that the mixer does not read."""
        needed = static is not None and self.self_attn.needs_static_embeddings
        return self.input_layernorm(hidden), self.input_layernorm(static) if needed else None


def _with_hooks(module: nn.Module, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a module's method to run the module's forward hooks, as calling the module does."""
    if not module._forward_hooks and not module._forward_pre_hooks:
        return method

    def call(*arguments: Any) -> Tensor:
        own = vars(module).get("forward")
        module.forward = method
        try:
            return module(*arguments)
        finally:
            if own is None:
                del module.forward  # the class's again
            else:
                module.forward = own

    return call


# ---- deconattn.model.streams -----------------------------------------------------------------------------------------
# Streams beside the hidden states: which layers read them, and the rows that each layer computes for them.


@dataclass(frozen=True)
class Streams:
    """Fixed and static streams of a stack of layers.

    Attributes:
        fixed: the fixed streams, in the order of their rows, which follow the batch's.
        last_fixed_layer: the last layer that reads one; none carries them beyond. -1: none reads one.
        static_layers: layers that read the static token embeddings.
    """

    fixed: tuple[FixedStream, ...]
    last_fixed_layer: int
    static_layers: tuple[int, ...]

    @classmethod
    def of(cls, variants: Sequence[str]) -> "Streams":
        """Return the streams of layers of these variants."""
        mixers = [mixer_class(variant) for variant in variants]
        readers = {index: mixer.fixed_stream for index, mixer in enumerate(mixers) if mixer.fixed_stream is not None}
        static = tuple(index for index, mixer in enumerate(mixers) if mixer.needs_static_embeddings)
        return cls(tuple(sorted(set(readers.values()))), max(readers, default=-1), static)

    @property
    def last_static_layer(self) -> int:
        """Index of the last layer that reads the static embeddings, -1 if none does."""
        return max(self.static_layers, default=-1)


def check_length(model: "Decoder", tokens: int) -> None:
    """Raise UserError if a sequence of `tokens` tokens is beyond the model's fixed stream."""
    longest = model.model_config.max_position_embeddings
    if model.streams and tokens > longest:
        raise UserError(
            f"a sequence of {tokens} tokens is beyond the fixed stream of {longest}: "
            "shorten it, or train with a longer --seq-len"
        )


# ---- deconattn.model.decoding_cache ----------------------------------------------------------------------------------
# The decoding cache of a whole model: one cache a layer, and how far each row has come.


BLOCK = 256
"""Tokens of memory that a growing cache takes at once."""


class DecodingCache:
    """Cache of one model and one batch, filled by `Decoder.extend`.

    Args:
        limit: the most tokens that will be held, padding included; None grows without end.
        static: take all memory at once, and keep every tensor's shape and address from then on.

    Attributes:
        layers: of each layer its cache.
        rows: sequences held, 0 before the first pass.
        capacity: tokens a row that there is room for now: a multiple of `BLOCK`, or `limit`.

    Raises:
        ValueError: `static` without a limit.
        UserError: the limit is beyond the model's fixed stream.
    """

    def __init__(self, model: "Decoder", limit: int | None = None, static: bool = False) -> None:
        if static and limit is None:
            raise ValueError("a static cache needs a limit: its memory is taken at once")
        if limit is not None:
            check_length(model, limit)
        self.layers: list[LayerCache] = [layer.self_attn.decoding.new_cache() for layer in model.blocks]
        self.limit = limit
        self.static = static
        self.reset()

    def reset(self) -> None:
        """Drop all tokens."""
        self.capacity = 0
        self.rows = 0
        self._seen: int | Tensor = 0
        self._lengths: Tensor | None = None
        for layer in self.layers:
            layer.reset()

    @property
    def is_empty(self) -> bool:
        """Whether no token has been cached yet."""
        return self.rows == 0

    @property
    def seen(self) -> int:
        """Tokens of a row that have been cached, padding included."""
        return int(self._seen)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers for this batch."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def croppable(self) -> bool:
        """Whether `crop` is possible."""
        return all(layer.croppable for layer in self.layers)

    def begin(self, model: "Decoder", hidden: Tensor, real: Tensor | None) -> Step:
        """Make room for the next tokens, [R, T, d].

        Raises:
            UserError: there is none.
        """
        rows, tokens = hidden.shape[:2]
        first, past, positions = self.is_empty, 0, None
        window = tokens
        if self.static:
            assert self.limit is not None
            if first:
                self._reserve(model, self.limit)
                self._lengths = torch.zeros(rows, dtype=torch.long, device=hidden.device)
                self._seen = torch.zeros((), dtype=torch.long, device=hidden.device)
                if hidden.device.type == "cuda":
                    torch._dynamo.mark_static_address(self._lengths)
                    torch._dynamo.mark_static_address(self._seen)
                if tokens > self.limit:
                    raise UserError(_beyond(tokens, self.limit))
            else:
                window = self.limit
        else:
            past = self.seen
            window = past + tokens
            self._reserve(model, window)
            if real is not None and self._lengths is None:
                self._lengths = torch.full((rows,), past, dtype=torch.long, device=hidden.device)
        new = torch.arange(tokens, device=hidden.device)
        if self._lengths is not None and not first:
            positions = self._lengths[:, None] + new
        rotary = Rotary.of(model.model_config, past + new[None] if positions is None else positions, hidden.dtype)
        return Step(rotary, first, past, positions, real, window, self.capacity, self.static)

    def advance(self, step: Step, rows: int, tokens: int) -> None:
        """Count the tokens that all layers hold now."""
        self.rows = rows
        self._seen += tokens
        if self._lengths is not None:
            self._lengths += tokens if step.real is None else step.real.sum(dim=1)

    def select_rows(self, rows: Tensor) -> None:
        """Reorder rows: row i becomes row rows[i], int64 [R']."""
        self.rows = len(rows)
        for layer in self.layers:
            layer.select_rows(rows)
        if self._lengths is not None:
            selected = self._lengths.index_select(0, rows.to(self._lengths.device))
            self._lengths = self._lengths.copy_(selected) if selected.shape == self._lengths.shape else selected

    def crop(self, tokens: int) -> None:
        """Remove the last `tokens` tokens of every row.

        Raises:
            ValueError: a layer keeps sums, from which nothing can be removed.
        """
        if not tokens:
            return
        if not self.croppable:
            raise ValueError("a layer keeps sums, from which no token can be taken back: decode without assistance")
        self._seen -= tokens
        if self._lengths is not None:
            self._lengths -= tokens

    def _reserve(self, model: "Decoder", tokens: int) -> None:
        if tokens <= self.capacity:
            return
        if self.limit is not None and tokens > self.limit:
            raise UserError(_beyond(tokens, self.limit))
        check_length(model, tokens)
        bounds = [self.limit] if self.limit is not None else []
        if model.streams:
            bounds.append(model.model_config.max_position_embeddings)
        self.capacity = min(-(-tokens // BLOCK) * BLOCK, *bounds) if bounds else -(-tokens // BLOCK) * BLOCK
        for layer, fixed in zip(self.layers, model.fixed_parts(self.capacity), strict=True):
            layer.fixed = fixed


def fixed_length(config: ModelConfig, tokens: int) -> int:
    """Return how many tokens of the fixed streams to compute for `tokens`: the next power of two, within bounds."""
    return min(config.max_position_embeddings, max(BLOCK, 1 << (tokens - 1).bit_length()))


def _beyond(tokens: int, limit: int) -> str:
    return f"a sequence of {tokens} tokens is beyond the cache's {limit}: make one with a higher limit"


# ---- deconattn.model.decoder -----------------------------------------------------------------------------------------
# Decoder stack: embedding, blocks, final norm, and the fixed streams that ride along as extra rows.


Observer = Callable[[Block, Tensor, Tensor | None, MixerContext | None], None]
"""Callback with the inputs of each layer: hidden states, static embeddings, and no context in a cached pass."""


class _FixedParts(NamedTuple):
    weights: tuple[tuple[int, int, torch.dtype], ...]
    length: int
    parts: list[tuple[Tensor, ...]]


class Decoder(nn.Module):
    """Token ids [B, L] -> hidden states [B, L, hidden_size].

    The fixed stream of `rndemb` and `fixedseq` is appended to the batch after embedding, passes every block
    like data, and is dropped after the last layer that reads it. Buffers, where a layer needs them:
    `fixed_embeddings` [max_position_embeddings, hidden_size] (random) and `fixed_ids` int64
    [max_position_embeddings] (text); `deconattn.model.init.initialize` fills them.

    Args:
        span: the layers to hold, all by default. The embedding comes with the first, the final norm with the last;
            `layers` is None where another pipeline stage holds the layer, so that names do not depend on the span.
    """

    activation_checkpointing: bool
    fixed_embeddings: Tensor
    fixed_ids: Tensor

    def __init__(self, config: ModelConfig, span: range | None = None) -> None:
        super().__init__()
        self.build(config, span)

    def build(self, config: ModelConfig, span: range | None) -> None:
        """Build the modules; apart from the constructor for classes that are another framework's module as well."""
        self.model_config = config
        self.span = range(config.num_hidden_layers) if span is None else span
        self.is_first, self.is_last = self.span.start == 0, self.span.stop == config.num_hidden_layers
        self.activation_checkpointing = False
        self.local_sequence: Callable[[Tensor], Tensor] = _whole
        self._fixed_parts: _FixedParts | None = None

        streams = Streams.of(config.layer_variants)
        self.streams: list[FixedStream] = list(streams.fixed)
        self.last_fixed_layer, self.last_static_layer = streams.last_fixed_layer, streams.last_static_layer

        if self.is_first:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            length = config.max_position_embeddings
            if "random" in self.streams:
                self.register_buffer("fixed_embeddings", torch.zeros(length, config.hidden_size))
            if "text" in self.streams:
                self.register_buffer("fixed_ids", torch.zeros(length, dtype=torch.long))
        self.layers = nn.ModuleList(
            Block(config, variant) if index in self.span else None
            for index, variant in enumerate(config.layer_variants)
        )
        if self.is_last:
            self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """Return hidden states [B, L, d] of int64 [B, L]; this stack must hold all layers.

        Both or neither of `position_ids` and `document_ids`, int64 [B, L]: mixing stays within a document.

        Raises:
            UserError: L is beyond the fixed stream.
            ValueError: one of the two without the other.
        """
        return self.forward_embedded(self.embed_tokens(input_ids), input_ids.shape[1], position_ids, document_ids)

    def forward_embedded(
        self,
        embeddings: Tensor,
        length: int,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Run `forward` on token embeddings [B, L, d]."""
        hidden = self.with_streams(embeddings, length)
        static = hidden if self.last_static_layer >= 0 else None
        context = self.context(length, hidden, position_ids, document_ids)
        hidden, _ = self.run(hidden, static, context, observe)
        return self.norm(hidden[: embeddings.shape[0]])

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embed tokens and append the fixed streams' rows: [B, L] -> [R, L, d]."""
        return self.with_streams(self.embed_tokens(input_ids), input_ids.shape[1])

    def with_streams(self, embeddings: Tensor, length: int) -> Tensor:
        """Append the fixed streams' rows: [B, L, d] -> [R, L, d]."""
        check_length(self, length)
        rows = [embeddings]
        for stream in self.streams:
            if stream == "random":
                fixed = self.fixed_embeddings[None, :length].to(rows[0].dtype)
                rows.append(self.local_sequence(fixed))
            else:
                rows.append(self.embed_tokens(self.fixed_ids[None, :length]))
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def context(
        self, length: int, like: Tensor, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> MixerContext:
        """Return the span's first context; `like` gives device and dtype, `length` is the whole sequence's."""
        if (position_ids is None) != (document_ids is None):
            raise ValueError("position_ids and document_ids go together: give both, or neither")
        streams = self.streams if self.span.start <= self.last_fixed_layer else []
        positions = torch.arange(length, device=like.device)[None]
        documents = None
        if position_ids is not None and document_ids is not None:
            extra = len(streams)  # a fixed stream is one document
            positions = torch.cat([position_ids, positions.expand(extra, -1)])
            documents = Documents(torch.cat([document_ids, torch.zeros_like(positions[:extra])]), positions)
        fixed_rows = {stream: index - len(streams) for index, stream in enumerate(streams)}
        return MixerContext(Rotary.of(self.model_config, positions, like.dtype), documents, fixed_rows)

    @property
    def blocks(self) -> list[Block]:
        """Layers of the span."""
        return [self.layers[index] for index in self.span]

    def extend(self, input_ids: Tensor, cache: DecodingCache, real: Tensor | None = None) -> Tensor:
        """Return hidden states [B, T, d] of tokens that continue the cache; this stack must hold all layers.

        Args:
            real: bool [B, T], false where a token is padding, which comes after the row's real ones; None: nowhere.

        Raises:
            UserError: the tokens go beyond the cache, or beyond the fixed stream.
        """
        return self.extend_embedded(self.embed_tokens(input_ids), cache, real)

    def extend_embedded(
        self, hidden: Tensor, cache: DecodingCache, real: Tensor | None = None, observe: Observer | None = None
    ) -> Tensor:
        """Run `extend` on token embeddings [B, T, d]."""
        step = cache.begin(self, hidden, real)
        static = hidden if self.last_static_layer >= 0 else None
        for layer, layer_cache in zip(self.blocks, cache.layers, strict=True):
            if observe is not None:
                observe(layer, hidden, static, None)
            hidden = layer(hidden, static, step, layer_cache)
        cache.advance(step, *hidden.shape[:2])
        return self.norm(hidden)

    def fixed_parts(self, length: int) -> list[tuple[Tensor, ...]]:
        """Return per layer what decoding needs of the fixed streams' first `length` tokens or more.

        Computed when first asked for, again for more tokens, and again after the weights changed. Where modules of
        others (adapters, which can be switched) or hooks take part, nothing is kept.
        """
        if not self.streams:
            return [()] * len(self.layers)
        weights = tuple(_version(parameter) for parameter in self.parameters())
        passing = self.training or _altered(self.layers.modules())
        known = None if passing else self._fixed_parts
        if known is None or known.weights != weights or known.length < length:
            length = fixed_length(self.model_config, length)
            known = _FixedParts(weights, length, self._run_fixed(length))
        self._fixed_parts = None if passing else known
        return known.parts

    @torch.inference_mode(False)  # what is kept must serve passes with gradients, too
    @torch.no_grad()
    def _run_fixed(self, length: int) -> list[tuple[Tensor, ...]]:
        ids = torch.empty(0, length, dtype=torch.long, device=self.embed_tokens.weight.device)
        hidden = self.embed(ids)
        static = hidden if self.last_static_layer >= 0 else None
        context = self.context(length, hidden)
        parts: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.blocks):
            if index > self.last_fixed_layer:
                parts.append(())
                continue
            mixer, inputs = layer.self_attn, layer.mixer_inputs(hidden, static)
            parts.append(mixer.decoding.fixed_part(mixer, *inputs, context))
            if index < self.last_fixed_layer:
                hidden = layer(hidden, static, context)
        return parts

    def run(
        self, hidden: Tensor, static: Tensor | None, context: MixerContext, observe: Observer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layers of the span; return hidden states and static embeddings, without rows that nobody reads."""
        for index in self.span:
            layer: Block = self.layers[index]
            batch = hidden.shape[0] - len(context.fixed_rows)  # len of a tensor would be a constant to torch.export
            if index == self.last_fixed_layer:  # nobody reads what the streams' rows would become
                context = replace(context, output_rows=batch)
            if observe is not None:
                observe(layer, hidden, static, context)
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, static, context, use_reentrant=False)
            else:
                hidden = layer(hidden, static, context)
            if index == self.last_fixed_layer:
                context = context.rows(batch)
                static = None if static is None else static[:batch]
        return hidden, static


def _version(parameter: nn.Parameter) -> tuple[int, int, torch.dtype]:
    """Return a key that changes where a parameter's values do."""
    try:
        place = parameter.data_ptr()
    except RuntimeError:  # a tensor of several, as quantized ones are
        place = id(parameter)
    # Made under inference_mode a tensor has no version; it cannot be trained either.
    return place, 0 if parameter.is_inference() else parameter._version, parameter.dtype


def _altered(modules: Iterable[nn.Module]) -> bool:
    """Whether outputs may depend on more than the modules' weights."""
    ours = (Block, FeedForward, Mixer, Linear)
    return any(
        not (isinstance(module, ours) or type(module).__module__.startswith("torch.nn."))
        or module._forward_hooks
        or module._forward_pre_hooks
        for module in modules
    )


def _whole(sequence: Tensor) -> Tensor:
    """Return all of a [R, L, d]; sequence parallelism replaces this with a function that takes the rank's part."""
    return sequence


# ---- deconattn.model.padding -----------------------------------------------------------------------------------------
# Batches whose rows have padding.


@dataclass(frozen=True, eq=False)
class Padding:
    """Rows with their real tokens first and the padding behind them, where causal mixing never sees it.

    Attributes:
        real: bool [B, L], in that order.
        order: int64 [B, L], which column each came from.
    """

    real: Tensor
    order: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "Padding | None":
        """Build from a mask bool [B, L], false at padding, which may be anywhere; None if there is none."""
        if mask.all():
            return None
        order = (~mask).long().argsort(dim=1, stable=True)
        return cls(mask.gather(1, order), order)

    def pack(self, columns: Tensor) -> Tensor:
        """Reorder [B, L] or [B, L, d] from the caller's columns: real tokens first."""
        return _reordered(columns, self.order)

    def unpack(self, hidden: Tensor) -> Tensor:
        """Reorder [B, L, d] back into the caller's columns."""
        return _reordered(hidden, self.order.argsort(dim=1))

    def unpack_map(self, weights: Tensor) -> Tensor:
        """Reorder a map [B, heads, L, L] back into the caller's rows and columns, zero where either is padding."""
        inverse, real = self.order.argsort(dim=1), self.real[:, None]
        weights = weights * (real[..., None] & real[:, :, None])
        weights = weights.gather(2, inverse[:, None, :, None].expand_as(weights))
        return weights.gather(3, inverse[:, None, None].expand_as(weights))


def _reordered(columns: Tensor, order: Tensor) -> Tensor:
    return columns.gather(1, order if columns.ndim == 2 else order[..., None].expand_as(columns))


# ---- deconattn.hf.cache_deconattn ------------------------------------------------------------------------------------
# Decoding cache with the interface of `transformers`.


class DeconAttnCache(DecodingCache, Cache):
    """`DecodingCache` under Hugging Face's method names.

    Each layer keeps what its variant needs, so there are no keys and values to be had at `update`, which
    Hugging Face's own attention layers call: a model of theirs cannot use it.
    """

    def __init__(self, model: Decoder, limit: int | None = None, static: bool = False) -> None:
        self.offloading = False  # Hugging Face reads it
        self.layer_class_to_replicate = None
        DecodingCache.__init__(self, model, limit, static)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(seen={self.seen}, nbytes={self.nbytes})"

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise TypeError("a DeconAttnCache is for a DeconAttn model: another model's attention cannot use it")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1 if self.limit is None else self.limit

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select_rows(torch.arange(self.rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -`tokens_to_remove` tokens."""
        super().crop(-tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Do nothing: cached tokens can be removed without a record, and sums cannot be."""

    @property
    def batch_size(self) -> int:
        return self.rows

    @property
    def is_compileable(self) -> bool:
        return self.static

    @property
    def is_initialized(self) -> bool:
        return not self.is_empty

    @property
    def is_croppable(self) -> bool:
        return self.croppable

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self.layers)


# ---- deconattn.hf.configuration_deconattn ----------------------------------------------------------------------------
# Configuration class for Hugging Face.


class DeconAttnConfig(PreTrainedConfig):
    """Configuration with the fields of `ModelConfig`; `layer_variants` names one variant a layer.

    Raises:
        UserError: from `to_model_config`, a dimension that cannot be.
    """

    model_type = "deconattn"

    vocab_size: int = 50_304
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    max_position_embeddings: int = 2048
    layer_variants: list[str] | None = None
    """None is standard attention throughout."""
    attention_bias: bool = True
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        if self.layer_variants is None:
            self.layer_variants = ["standard"] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, config: ModelConfig, **kwargs: object) -> "DeconAttnConfig":
        """Convert a model's configuration; `kwargs` are Hugging Face's further fields (`eos_token_id`, `dtype`)."""
        fields = dataclasses.asdict(config) | {"layer_variants": list(config.layer_variants)}
        return cls(**fields, **kwargs)

    def to_model_config(self) -> ModelConfig:
        """Convert to the model's own configuration."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelConfig)}
        return ModelConfig(**fields | {"layer_variants": tuple(fields["layer_variants"])})


# ---- deconattn.hf.modeling_deconattn ---------------------------------------------------------------------------------
# Model classes for Hugging Face: the decoder and head of training under Hugging Face's calling convention.


CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else ("past_key_values")
)
"""Name of the cache argument and output in this version of transformers; 5.24 renamed it."""
IGNORED = -100
"""Label of a token that does not count in the loss."""


class DeconAttnPreTrainedModel(PreTrainedModel):
    """Base class of our models: what they support of Hugging Face's features."""

    config: DeconAttnConfig
    config_class = DeconAttnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `num_items_in_batch`
    _no_split_modules = ["Block"]  # noqa: RUF012  (Hugging Face's declaration)
    _supports_sdpa = True  # the ops choose the implementation themselves; this accepts Hugging Face's default

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return False

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """Return False: no attention function of a serving engine can replace ours."""
        return False

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Decoder):
            if "random" in module.streams:
                initialization.normal_(module.fixed_embeddings, mean=0.0, std=self.config.initializer_range)
            if "text" in module.streams:
                initialization.zeros_(module.fixed_ids)  # there is no text to be had here: weights bring it

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        for module in self.modules():
            if isinstance(module, Decoder):
                module.activation_checkpointing = enable


class DeconAttnModel(Decoder, DeconAttnPreTrainedModel):
    """Decoder without the head: token ids or embeddings to hidden states.

    Raises:
        UserError: a layer's variant is not registered.
    """

    def __init__(self, config: DeconAttnConfig) -> None:
        unknown = sorted(set(config.layer_variants or ()) - set(variant_names()))
        if unknown:
            raise UserError(f"variant {unknown[0]!r} is not registered: load the plugin file that registers it first")
        DeconAttnPreTrainedModel.__init__(self, config)
        self.build(config.to_model_config(), None)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DeconAttnCache | None = None,
        past_key_values: DeconAttnCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | Tensor | None = None,
        max_length_k: int | Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Return hidden states [B, L, hidden_size] after the final norm.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], or with a cache [B, tokens seen + L] (or L): zero at padding, which may be anywhere
                and counts for nothing. A single token that continues a cache is taken for a real one.
            position_ids: int64 [B or 1, L]; where they do not go up by one a new document begins, and mixing
                does not cross it. Positions are counted from each document's first token whatever they say.
            cache: tokens before these, which the call adds these to.
            past_key_values: its name in transformers before 5.24.
            inputs_embeds: [B, L, hidden_size] in the place of `input_ids`; `staticemb` layers read them, too.
            use_cache: return a cache; by default only one that was given. No gradient flows through it.
            output_attentions: return each layer's map [B, heads, L, L], None of a layer that mixes nothing. The whole
                map is computed by its formula, beside the model's own way.
            output_hidden_states: return the embeddings and what each layer makes of them, the last one normed.
            cu_seq_lens_q: int32 [documents + 1], where the documents of a batch of one row begin, and the end: another
                way to say what position_ids say, which are believed where both are given.
            cu_seq_lens_k: the same again, as collators for flash attention give it with the longest document's length.
            max_length_q: that length, which nothing here needs.
            max_length_k: the same again.
            seq_idx: int [B, L], the number of each token's document: a third way.

        Raises:
            UserError: the sequence is beyond the fixed stream or the cache.
            ValueError: arguments that contradict one another, a mask of another shape, another model's cache, an empty
                one for tokens that are not the first, or one for rows of several documents.
        """
        cache = _one_cache(cache, past_key_values)
        if position_ids is None:
            position_ids = _positions(cu_seq_lens_q, seq_idx)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if cache is None and use_cache:
            cache = DeconAttnCache(self)
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        watched = _Watched(
            hidden.shape[0],
            _asked(output_hidden_states, self.config.output_hidden_states),
            _asked(output_attentions, self.config.output_attentions),
        )
        if watched.wants_maps and cache is not None:
            raise ValueError("output_attentions needs the whole sequence at once: give use_cache=False")
        padding = None
        if cache is not None and not cache.is_empty and hidden.shape[1] == 1:
            hidden = self.extend_embedded(hidden, cache, None, watched)
        else:
            padding = None if attention_mask is None else Padding.of(_new_columns(attention_mask, hidden, cache))
            hidden = self._first_pass(hidden, padding, position_ids, cache, watched)
        if padding is not None:
            hidden = padding.unpack(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=watched.all_hidden(hidden, padding),
            attentions=watched.all_maps(padding),
            **{CACHE: cache},
        )

    def _first_pass(
        self,
        hidden: Tensor,
        padding: Padding | None,
        position_ids: Tensor | None,
        cache: DeconAttnCache | None,
        watched: "_Watched",
    ) -> Tensor:
        """Run a pass of several tokens or with none cached: [B, L, d] in the caller's columns -> in packed ones."""
        rows, tokens = hidden.shape[:2]
        if padding is not None:
            hidden = padding.pack(hidden)
        if position_ids is not None:
            position_ids = position_ids.expand(rows, tokens)
            position_ids = position_ids if padding is None else padding.pack(position_ids)
        starts = _document_starts(position_ids, padding)
        if cache is not None:
            if starts is not None:
                raise ValueError("a cache holds one document a row: give each document a row, or use_cache=False")
            if cache.is_empty and position_ids is not None and _later(position_ids, padding):
                raise ValueError("the cache is empty, but position_ids are not a beginning's: tokens were lost")
            return self.extend_embedded(hidden, cache, None if padding is None else padding.real, watched)
        if starts is None:
            return self.forward_embedded(hidden, tokens, observe=watched)
        indices = torch.arange(tokens, device=hidden.device).expand_as(starts)
        positions = indices - (indices * starts).cummax(dim=1).values
        return self.forward_embedded(hidden, tokens, positions, starts.long().cumsum(1), watched)


class DeconAttnForCausalLM(DeconAttnPreTrainedModel, GenerationMixin):
    """Decoder with head, its state dict as `deconattn.model.causal_lm.CausalLM`'s, buffers included.

    `generate` keeps of each layer what its variant needs (`DeconAttnCache`); `cache_implementation="static"`
    gives tensors of constant shape, for torch.compile.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (Hugging Face's declaration)

    def __init__(self, config: DeconAttnConfig) -> None:
        super().__init__(config)
        self.model = DeconAttnModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DeconAttnCache | None = None,
        past_key_values: DeconAttnCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | Tensor | None = None,
        max_length_k: int | Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Return logits [B, kept, vocab_size] and, with labels, the mean loss; see `DeconAttnModel.forward`.

        Args:
            labels: int64 [B, L], the inputs' own ids (shifted here), -100 where ignored.
            logits_to_keep: only the last so many positions' logits (0: all), or the positions' indices.
            num_items_in_batch: what the summed loss is divided by instead of the number of labels
                (gradient accumulation).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=_one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cu_seq_lens_q=cu_seq_lens_q,
            seq_idx=seq_idx,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss = None
        if labels is None:
            logits = self.lm_head(hidden[:, kept])
        else:
            logits = self.lm_head(hidden)
            targets = labels[:, 1:].to(logits.device)
            scores = logits[:, :-1].float() if logits.dtype in (torch.bfloat16, torch.float16) else logits[:, :-1]
            loss = cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
            loss = loss / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
            logits = logits[:, kept]
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        """Make a `DeconAttnCache` where Hugging Face would make a key/value cache.

        Raises:
            UserError: the longest sequence asked for is beyond the fixed stream.
            ValueError: a kind of cache that there is none of.
        """
        check_length(self.model, length)  # before anything is computed
        wanted = generation_config.cache_implementation
        given = _one_cache(model_kwargs.pop("cache", None), model_kwargs.pop("past_key_values", None))
        if given is not None:
            model_kwargs[CACHE] = given
        if given is not None or not generation_config.use_cache:
            return super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, length
            )
        if wanted not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation {wanted!r}: this model has dynamic (the default) and static")
        # A growing one without a limit: the next turn of a conversation may continue it.
        static = wanted == "static"
        model_kwargs[CACHE] = DeconAttnCache(self.model, length if static else None, static)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, inputs_embeds: Tensor, **_: Any) -> Tensor | None:
        """Return the prompt's mask for a static cache, and none afterwards: its shape would change every step."""
        return attention_mask if inputs_embeds.shape[1] > 1 else None


class _Watched:
    """Observer that collects what `output_hidden_states` and `output_attentions` ask for."""

    def __init__(self, rows: int, wants_hidden: bool, wants_maps: bool) -> None:
        self.wants_maps = wants_maps
        self._rows, self._wants_hidden = rows, wants_hidden
        self._hidden: list[Tensor] = []
        self._maps: list[Tensor | None] = []

    def __call__(self, layer: Block, hidden: Tensor, static: Tensor | None, context: MixerContext | None) -> None:
        if self._wants_hidden:
            self._hidden.append(hidden[: self._rows])
        if self.wants_maps:
            assert context is not None, "a cached pass has no maps"
            whole = layer.self_attn.attention_map(*layer.mixer_inputs(hidden, static), context)
            self._maps.append(None if whole is None else whole[: self._rows])

    def all_hidden(self, last: Tensor, padding: Padding | None) -> tuple[Tensor, ...] | None:
        """Return embeddings, every layer's output but the last one's, and `last`; in the caller's columns."""
        if not self._wants_hidden:
            return None
        return (*(hidden if padding is None else padding.unpack(hidden) for hidden in self._hidden), last)

    def all_maps(self, padding: Padding | None) -> tuple[Tensor | None, ...] | None:
        if not self.wants_maps:
            return None
        return tuple(whole if whole is None or padding is None else padding.unpack_map(whole) for whole in self._maps)


def _asked(given: bool | None, default: bool | None) -> bool:
    return bool(default if given is None else given)


def _one_cache(cache: Any, past_key_values: Any) -> DeconAttnCache | None:
    """Return the cache, under whichever name it was passed."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are one argument under two names: give one of them")
    cache = past_key_values if cache is None else cache
    if cache is not None and not isinstance(cache, DeconAttnCache):
        raise ValueError(f"the cache is a {type(cache).__name__}: give a DeconAttnCache, or leave it out")
    return cache


def _new_columns(mask: Tensor, hidden: Tensor, cache: DeconAttnCache | None) -> Tensor:
    """Return the attention mask of the new tokens, bool [B, L]."""
    rows, tokens = hidden.shape[:2]
    lengths = {tokens} if cache is None else {tokens, cache.seen + tokens}
    if mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] not in lengths:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}: give one of the tokens' {(rows, tokens)}")
    return mask[:, -tokens:].bool()


def _positions(offsets: Tensor | None, documents: Tensor | None) -> Tensor | None:
    """Return positions, int64 [B, L], from documents' bounds or from each token's document, if either is given."""
    if offsets is not None:
        documents = torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())[None]
    if documents is None:
        return None
    tokens = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.zeros_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents.diff(dim=1) != 0
    return tokens - (tokens * begins).cummax(dim=1).values


def _document_starts(position_ids: Tensor | None, padding: Padding | None) -> Tensor | None:
    """Return where a document begins after a row's first, bool [B, L]; None where none does. All packed."""
    if position_ids is None:
        return None
    starts = torch.zeros_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if padding is not None:
        starts &= padding.real
    return starts if starts.any() else None


def _later(position_ids: Tensor, padding: Padding | None) -> bool:
    """Whether a row's first token says that others come before it."""
    first = position_ids[:, 0] > 0
    return bool((first if padding is None else first & padding.real[:, 0]).any())
