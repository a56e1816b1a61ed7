"""Layers compiled one by one, as `--compile` does it, are the layers that they were."""

from collections.abc import Callable

import pytest
import torch

from deconattn.model.causal_lm import CausalLM
from deconattn.model.held_streams import HeldStreams
from deconattn.model.recompute import recompute
from deconattn.train.compiled import compile_layers


@pytest.mark.parametrize("variant", [pytest.param("fixedseq", marks=pytest.mark.slow), "nonapproximate"])
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
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_hold_fixed_streams(
    tiny_model: Callable[..., CausalLM], checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one graph each: alone with a gradient and without, beside what is held and what is differentiated."""
    monkeypatch.setenv("DECONATTN_BACKEND", "reference")  # blocks would break the graph
    torch._dynamo.reset()
    eager, compiled = (tiny_model("fixedseq", "standard", "fixedseq", "rndemb") for _ in range(2))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compile_layers(compiled.model, backend=backend, fullgraph=True)
    counts = []
    for number in range(2):
        for model in (eager, compiled):
            model.model.activation_checkpointing = checkpointing
            streams = HeldStreams()
            for micro_batch in range(3):
                streams.last = micro_batch == 2
                generator = torch.Generator().manual_seed(3 * number + micro_batch)
                ids = torch.randint(61, (1, 20), generator=generator)
                model(ids, ids, run=streams).total.backward()
        counts.append(len(graphs))
    assert counts[0] == counts[1] > 0
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
