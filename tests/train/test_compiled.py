"""What torch.compile makes of the layers, as a GPU runs them: one graph each, and none left out.

Traced only: the graphs are not run, so kernels and flash attention need not be there. The compiler proper takes a
minute a variant, in the slow tests of trainings.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deconattn.data import Batch
from deconattn.model.causal_lm import CausalLM
from deconattn.ops import flash
from deconattn.train.compiled import compile_layers
from tests.model.conftest import model_of

LENGTH = 16
VARIANTS = ("standard", "staticemb", "rndemb", "fixedseq", "approximate", "nonapproximate", "mlp")
QUICK = {("standard", True), ("rndemb", True), ("approximate", False)}
CASES = [
    pytest.param(variant, masked, marks=[] if (variant, masked) in QUICK else pytest.mark.slow)
    for variant in VARIANTS
    for masked in (False, True)
]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels and flash attention are what a layer calls."""
    import torch._dynamo

    monkeypatch.setenv("DECONATTN_BACKEND", "triton")
    monkeypatch.setattr(flash, "packs", lambda queries: True)
    monkeypatch.setattr(flash, "package", lambda queries: None)
    limits = "recompile_limit", "accumulated_recompile_limit"
    before = [getattr(torch._dynamo.config, name) for name in limits]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    for name, limit in zip(limits, before, strict=True):
        setattr(torch._dynamo.config, name, limit)


class Traced:
    """Backend that keeps each graph and computes zeros."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.graphs.append(graph)
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        like = [node.meta["example_value"] for node in output.args[0]]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            # Differentiable where the graph's outputs are.
            wanted = sum((i.sum() for i in inputs if isinstance(i, Tensor) and i.requires_grad), torch.zeros(()))
            return tuple(torch.zeros(one.shape, dtype=one.dtype) + wanted.to(one.dtype) for one in like)

        return run


def batch(rows: int, masked: bool, documents: int = 2) -> Batch:
    """Rows of so many documents."""
    ids = torch.zeros(rows, LENGTH, dtype=torch.long)
    if not masked:
        return Batch(ids, ids)
    lengths = LENGTH // documents
    places = torch.arange(LENGTH).expand(rows, -1)
    return Batch.of(torch.stack([ids, ids, places % lengths, places // lengths]))


def forward(model: CausalLM, given: Batch) -> Tensor:
    documents = given.position_ids, given.document_ids, given.document_offsets
    return model(given.input_ids, given.labels, *documents).total


def made(backend: Traced, *variants: str) -> CausalLM:
    model = model_of(*variants, noise=0.0).bfloat16()
    compile_layers(model.model, backend=backend, fullgraph=True)
    return model


@pytest.mark.parametrize(("variant", "masked"), CASES)
def test_a_layer_is_one_graph(variant: str, masked: bool) -> None:
    """`fullgraph` raises where one breaks; layers that are alike share it."""
    backend = Traced()
    model = made(backend, *[variant] * 4)
    forward(model, batch(2, masked)).backward()
    assert 1 <= len(backend.graphs) <= 3


@pytest.mark.slow
def test_the_number_of_documents_breaks_nothing() -> None:
    backend = Traced()
    model = made(backend, "standard")
    for rows, documents in ((8, 8), (8, 4), (8, 2), (8, 16)):
        forward(model, batch(rows, True, documents))
    assert len(backend.graphs) == 2, "up to 64 documents, up to 128"


@pytest.mark.slow
def test_a_hybrid_of_three_variants_is_compiled_throughout(caplog: pytest.LogCaptureFixture) -> None:
    """In training, validation and training again: torch's own limit is eight specialisations of all layers together."""
    from torch._dynamo.utils import counters

    backend = Traced()
    model = made(backend, *["standard", "rndemb", "fixedseq"] * 2)
    for masked in (False, True):
        with torch.no_grad():
            forward(model, batch(2, masked))
        forward(model, batch(2, masked)).backward()
        model.eval()
        with torch.no_grad():
            forward(model, batch(2, masked))
        model.train()
        before = len(backend.graphs)
        forward(model, batch(2, masked)).backward()
        assert len(backend.graphs) == before
    assert before > 8
    assert not counters["graph_break"] and counters["frames"]["total"] == counters["frames"]["ok"]
    assert "recompile_limit" not in caplog.text
