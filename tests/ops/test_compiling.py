"""Marks for torch.compile that cost nothing before it is used."""

import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from deconattn.ops.compiling import constant_in_graphs, outside_graphs

Compiled = Callable[[Tensor], Tensor]


def graphs_of(function: Compiled) -> list[torch.fx.GraphModule]:
    """What torch.compile makes of a function that is called twice."""
    torch.compiler.reset()
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        found.append(graph)
        return graph.forward

    compiled = torch.compile(function, backend=backend)
    ones = torch.ones(3)
    assert compiled(ones).equal(function(ones))
    assert compiled(ones).equal(function(ones))
    return found


def test_a_constant_is_asked_for_once() -> None:
    asked = []

    @constant_in_graphs
    def factor() -> float:
        asked.append(torch.compiler.is_compiling())
        return float(open("/proc/self/stat").read().split()[0])  # nothing that a compiler could look into

    def scaled(values: Tensor) -> Tensor:
        return values * factor() + 1

    graphs = graphs_of(scaled)
    assert len(graphs) == 1, "the graph breaks"
    assert len(asked) == 3, "once for the graph, twice without it"


def test_a_constant_is_marked_as_pytorch_marks_it() -> None:
    def mark(decorator: Callable[[Callable[[], int]], Callable[[], int]]) -> dict[str, object]:
        def function() -> int:
            return 0

        assert decorator(function) is function
        return vars(function)

    assert mark(constant_in_graphs) == mark(torch.compiler.assume_constant_result)


def test_what_is_outside_runs_as_written_with_all_that_it_calls() -> None:
    def times(decorator: Callable[[Compiled], Compiled]) -> list[list[str]]:
        def inner(values: Tensor) -> Tensor:
            return values.sin()

        @decorator
        def outside(values: Tensor) -> Tensor:
            assert not torch.compiler.is_compiling()
            return inner(values).cos()

        graphs = graphs_of(lambda values: outside(values * 2) + 1)
        return [[node.name for node in graph.graph.nodes if node.op.startswith("call")] for graph in graphs]

    assert times(outside_graphs) == times(torch.compiler.disable) == [["mul"], ["add"]]


def test_a_model_does_not_bring_the_compiler() -> None:
    """Every rank, and every tool that counts parameters, would wait for it."""
    script = """
import sys
import torch
import deconattn.model.causal_lm, deconattn.cost.parameters
import deconattn.ops.cross_entropy, deconattn.ops.blockwise.fixed_map
print(sorted({"torch._dynamo", "torch._inductor", "transformers", "deepspeed"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
