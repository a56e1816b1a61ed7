"""Several linear layers of one input: when they are one operation, and that nobody sees a difference."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from deconattn.layers import linear as layers
from deconattn.layers.linear import Linear, project
from deconattn.layers.untouched import is_untouched


class Adapted(Linear):
    """A layer with something beside its product."""


class Quantised(Tensor):
    """A weight with products of its own."""


def changed(change: str) -> Linear:
    layer = Linear(4, 3)
    match change:
        case "pre-hook":
            layer.register_forward_pre_hook(lambda module, inputs: None)
        case "hook":
            layer.register_forward_hook(lambda module, inputs, output: None)
        case "backward hook":
            layer.register_full_backward_hook(lambda module, into, out: None)
        case "replaced forward":
            layer.forward = lambda inputs: inputs  # type: ignore[method-assign]
        case "subclass":
            layer = Adapted(4, 3)
        case "PyTorch's":
            layer = nn.Linear(4, 3)  # type: ignore[assignment]
        case "other weight":
            layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    return layer


@pytest.mark.parametrize(
    "change",
    ["pre-hook", "hook", "backward hook", "replaced forward", "subclass", "PyTorch's", "other weight"],
)
def test_only_plain_layers_are_bypassed(change: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "_is_step", lambda inputs: True)
    assert is_untouched(Linear(4, 3), Linear)
    assert not is_untouched(changed(change), Linear)
    monkeypatch.setattr(layers, "linears", None)
    project(torch.ones(2, 4), (Linear(4, 3), changed(change)))


def test_a_hook_on_all_modules_is_called(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "_is_step", lambda inputs: True)
    called = []
    handle = register_module_forward_hook(lambda module, inputs, output: called.append(module))
    try:
        project(torch.ones(2, 4), (Linear(4, 3), Linear(4, 3)))
    finally:
        handle.remove()
    assert len(called) == 2


def test_elsewhere_each_layer_is_called(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "linears", None)
    project(torch.ones(2, 4), (Linear(4, 3), Linear(4, 3)))
