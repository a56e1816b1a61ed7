"""Layers compiled one by one, as `--compile` does it, are the layers that they were."""

from collections.abc import Callable

import pytest
import torch

from deconattn.model.causal_lm import CausalLM
from deconattn.model.recompute import recompute
from deconattn.train.compiled import compile_layers


@pytest.mark.parametrize("variant", ["fixedseq", "nonapproximate"])
def test_compiled_layers_compute_the_same(tiny_model: Callable[..., CausalLM], variant: str) -> None:
    """Traced only: the compiler proper takes a minute a variant, in the slow tests of training."""
    torch._dynamo.reset()
    eager, compiled = (tiny_model(variant, "standard") for _ in range(2))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    for layer in compiled.model.layers:
        layer.compile(backend=backend)
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    outputs = [model.model(ids) for model in (eager, compiled)]
    assert len(graphs) >= 2
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().mean().backward()
    for expected, parameter in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["mixer", "mlp"])
def test_a_recomputed_part_is_in_the_layers_one_graph(tiny_model: Callable[..., CausalLM], part: str) -> None:
    torch._dynamo.reset()
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    eager, compiled = (tiny_model("mlp", "standard") for _ in range(2))
    recompute(compiled.model, part)  # type: ignore[arg-type]
    compile_layers(compiled.model, backend="aot_eager", fullgraph=True)
    for model in (eager, compiled):
        model(ids, ids.roll(-1)).total.backward()
    for expected, parameter in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
