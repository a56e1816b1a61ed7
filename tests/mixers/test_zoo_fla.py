"""The field's mixers against flash-linear-attention's naive PyTorch, where its package is installed (fla-core)."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu, logsigmoid, normalize
from torch.testing import assert_close

from deconattn.ops.delta_rule import delta_rule
from deconattn.ops.gated_linear import gated_linear
from tests.mixers.models import HEADS
from tests.mixers.test_contract import build_inputs, build_mixer
from tests.mixers.test_zoo import plain_context

pytest.importorskip("fla.ops", reason="fla-core is not installed")
LENGTH, WIDTH = 150, 16


def theirs(module: str, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(f"fla.ops.{module}.naive"), name)
    return found


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(2, 3, LENGTH, *shape, generator=torch.Generator().manual_seed(seed))


def rows_first(*tensors: Tensor) -> list[Tensor]:
    """[R, heads, L, ..] as theirs mostly are, [R, L, heads, ..]."""
    return [tensor.transpose(1, 2) for tensor in tensors]


QUERIES, KEYS, VALUES = (drawn(width, seed=number) for number, width in enumerate((WIDTH, WIDTH, 24)))
SCALED, UNIT = QUERIES * WIDTH**-0.5, normalize(KEYS, dim=-1)
STRENGTHS = drawn(seed=3).sigmoid()
A_HEAD, A_CHANNEL = logsigmoid(drawn(seed=4)), logsigmoid(drawn(WIDTH, seed=5)) / 4


def close(ours: Tensor, expected: Tensor) -> None:
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_gla() -> None:
    expected, _ = theirs("gla", "naive_recurrent_gla")(*rows_first(QUERIES, KEYS, VALUES, A_CHANNEL))
    close(gated_linear(SCALED, KEYS, VALUES, A_CHANNEL)[0], expected.transpose(1, 2))


def test_retention() -> None:
    decay = torch.log1p(-torch.exp2(-5 - torch.arange(3.0)))[None, :, None].expand(2, 3, LENGTH)
    close(gated_linear(SCALED, KEYS, VALUES, decay)[0], theirs("retention", "naive_retention")(QUERIES, KEYS, VALUES))


def test_deltanet() -> None:
    expected, _ = theirs("delta_rule", "delta_rule_recurrence")(QUERIES, UNIT, VALUES, STRENGTHS)
    close(delta_rule(SCALED, UNIT, VALUES, STRENGTHS)[0], expected)


def test_gated_deltanet() -> None:
    recurrence = theirs("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    expected, _ = recurrence(*rows_first(QUERIES, UNIT, VALUES, STRENGTHS, A_HEAD))
    close(delta_rule(SCALED, UNIT, VALUES, STRENGTHS, A_HEAD)[0], expected.transpose(1, 2))


def test_kda() -> None:
    expected, _ = theirs("kda", "naive_recurrent_kda")(*rows_first(QUERIES, UNIT, VALUES, A_CHANNEL, STRENGTHS))
    close(delta_rule(SCALED, UNIT, VALUES, STRENGTHS, A_CHANNEL)[0], expected.transpose(1, 2))


@pytest.mark.parametrize("variant", ["linear", "based"])
def test_normalised_linear_attention(variant: str) -> None:
    mixer, context = build_mixer(variant), plain_context(build_mixer(variant).config, LENGTH)
    hidden, static, _ = build_inputs(2, LENGTH)
    queries, keys, values = mixer.operands(hidden)
    q, k = mixer.queries_keys(queries, keys)
    v = mixer.heads(values, mixer.value_width)
    if variant == "linear":
        run = theirs("linear_attn", "naive_recurrent_linear_attn")
        expected = run(*rows_first(elu(q) + 1, elu(k) + 1, v), normalize=True)[0].transpose(1, 2)
    else:
        expected = theirs("based", "naive_parallel_based")(q, k, v)
    close(mixer(hidden, static, context), mixer.o_proj(mixer.joined(expected)))


@pytest.mark.parametrize("heads", HEADS)
def test_forgetting(heads: str) -> None:
    """Over few tokens: theirs adds up gates in fp32, and takes differences of the sums."""
    mixer = build_mixer("forgetting", **HEADS[heads])
    hidden, static, _ = build_inputs(2, 32)
    queries, keys = mixer.queries_keys(hidden)
    given = rows_first(queries, keys, mixer.values(hidden), mixer.gates(hidden))
    expected = theirs("forgetting_attn", "naive_forgetting_attn")(*given)
    close(mixer(hidden, static, plain_context(mixer.config, 32)), mixer.output(expected.transpose(1, 2).double()))
