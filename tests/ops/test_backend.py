"""Which backend is chosen, why, and what cannot be forced."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.errors import UserError
from deconattn.ops import backend
from deconattn.ops.documents import Documents
from deconattn.ops.fixed_map import fixed_map_attention
from deconattn.ops.prefix_average import prefix_attention, prefix_average
from deconattn.ops.softmax_attention import causal_attention
from deconattn.ops.taylor_attention import taylor_attention

VALUES = torch.zeros(1, 2, 8, 16)


def test_the_cpu_takes_pytorch_and_says_why():
    choice = backend.choose(VALUES)
    assert choice.backend == "torch"
    assert "not on a GPU" in choice.reason


@pytest.mark.parametrize("name", ["reference", "torch", "triton"])
def test_forced(name: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("DECONATTN_BACKEND", name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    choice = backend.choose(VALUES)
    assert choice.backend == name
    assert "DECONATTN_BACKEND" in choice.reason


def test_no_such_backend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DECONATTN_BACKEND", "cuda")
    with pytest.raises(UserError, match="DECONATTN_BACKEND=cuda: choose one of reference, torch, triton"):
        backend.choose(VALUES)


@pytest.mark.parametrize(
    ("values", "installed", "reason"),
    [
        (VALUES.double(), True, "float64"),
        (torch.zeros(1, 2, 8, 256), True, "head_dim 256"),
        (VALUES, False, "not installed"),
        (VALUES, True, "not on a GPU"),
    ],
)
def test_triton_cannot_be_forced_where_it_cannot_run(
    values: Tensor, installed: bool, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend, "_kernels_installed", lambda: installed)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend.choose(values).backend == "torch"
    monkeypatch.setenv("DECONATTN_BACKEND", "triton")
    with pytest.raises(UserError, match=reason):
        backend.choose(values)


@pytest.mark.usefixtures("interpreter")
def test_every_backend_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    """Each door, in fp32, forced each way."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 4, 40, 16, generator=generator)
    keys, values = torch.randn(2, 2, 2, 40, 16, generator=generator).unbind()
    ids = torch.arange(40).div(15, rounding_mode="floor").expand(2, 40).contiguous()
    scores = torch.randn(2, 4, 40, generator=generator)
    calls = {
        "fixed map": lambda: fixed_map_attention(queries[0], keys[0], values),
        "taylor": lambda: taylor_attention(queries, keys, values, ids),
        "prefix": lambda: prefix_attention(queries, keys, values, ids),
        "average": lambda: prefix_average(scores, values.repeat_interleave(2, 1), ids),
        "softmax": lambda: causal_attention(queries, keys, values, Documents(ids, ids)),
    }
    found: dict[str, list[Tensor]] = {name: [] for name in calls}
    for forced in ("reference", "torch", "triton"):
        monkeypatch.setenv("DECONATTN_BACKEND", forced)
        for name, call in calls.items():
            found[name].append(call())
    for exact, *others in found.values():
        for other in others:
            assert_close(other, exact, rtol=1e-4, atol=1e-5)


def test_formulas_are_for_torch_export_alone():
    """torch 2.11 answers `is_exporting` with yes in everything that it compiles."""

    class Named(torch.nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values + (1 if backend.backend_for(values) == "reference" else 0)

    compiled = torch.compile(Named(), backend="eager", fullgraph=True)
    assert not compiled(VALUES).any()
    for strict in (False, True):
        assert torch.export.export(Named(), (VALUES,), strict=strict).module()(VALUES).all()


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("name", ["fixed map", "taylor", "prefix"])
def test_kernels_are_one_operator_to_the_compiler(name: str, monkeypatch: pytest.MonkeyPatch):
    """No break in the graph, and the same gradients."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("DECONATTN_BACKEND", "triton")
    queries, keys, values = torch.randn(3, 1, 2, 20, 16, generator=torch.Generator().manual_seed(0)).unbind()
    inputs = [tensor.requires_grad_() for tensor in (queries, keys, values)]
    calls = {
        "fixed map": lambda q, k, v: fixed_map_attention(q[0], k[0], v),
        "taylor": taylor_attention,
        "prefix": prefix_attention,
    }

    def layer(*given: Tensor) -> Tensor:
        return 2 * calls[name](*(tensor + 1 for tensor in given))

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    ours, expected = compiled(*inputs), layer(*inputs)
    assert_close(ours, expected)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        assert_close(one, other)
