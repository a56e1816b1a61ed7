"""Recomputed parts of layers: the same numbers, names and draws, and the part runs once more."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout

from deconattn.mixers import variant_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.recompute import Recomputed, recompute

TOKENS = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
DOCUMENTS = (torch.arange(20) % 10).expand(2, -1), (torch.arange(20) // 10).expand(2, -1)


def gradients(model: CausalLM, *documents: Tensor) -> list[Tensor]:
    loss = model(TOKENS, TOKENS.roll(-1), *documents).total
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


@pytest.mark.parametrize("documents", [(), DOCUMENTS], ids=["plain", "documents"])
@pytest.mark.parametrize("part", ["mixer", "mlp", "layer"])
@pytest.mark.parametrize("variant", variant_names())
def test_gradients_to_the_last_bit(tiny_model: Callable[..., CausalLM], variant: str, part, documents):
    model = tiny_model(variant, "standard", variant).float()
    expected, names = gradients(model, *documents), [*model.state_dict()]
    recompute(model.model, part)
    for found, exact in zip(gradients(model, *documents), expected, strict=True):
        assert (found is None and exact is None) or torch.equal(found, exact)
    assert [*model.state_dict()] == names


@pytest.mark.parametrize(("part", "calls"), [("none", (2, 2)), ("mixer", (4, 2)), ("mlp", (2, 4))])
def test_one_part_runs_again(tiny_model: Callable[..., CausalLM], part, calls: tuple[int, int]):
    model = tiny_model("standard", "mlp")
    recompute(model.model, part)
    seen: list[str] = []
    for block in model.model.blocks:
        for name in ("self_attn", "mlp"):
            getattr(block, name).register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    gradients(model)
    assert (seen.count("self_attn"), seen.count("mlp")) == calls
    seen.clear()
    with torch.no_grad():
        model.model(TOKENS)
    assert len(seen) == 4
    kinds = {type(block.mlp) for block in model.model.blocks}
    assert len(kinds) == 1 and issubclass(kinds.pop(), Recomputed) == (part == "mlp")


@pytest.mark.parametrize("part", ["mixer", "mlp"])
def test_draws_are_drawn_alike(tiny_model: Callable[..., CausalLM], part):
    model = tiny_model("standard", "standard")
    for block in model.model.blocks:
        for module in (block.self_attn.o_proj, block.mlp.down_proj):
            module.register_forward_pre_hook(lambda _, given: dropout(given[0], 0.5))
    torch.manual_seed(0)
    expected = gradients(model)
    recompute(model.model, part)
    torch.manual_seed(0)
    for found, exact in zip(gradients(model), expected, strict=True):
        assert torch.equal(found, exact)
