"""Entrance of cut modules: gradients as by the plain exchanges and as in one process, and what is kept on the way."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tests.ranks import Ranks

Cases = tuple[tuple[bool, Any, bool], ...]
VARIANTS = ("standard", "staticemb", "rndemb", "fixedseq", "mlp", "approximate", "nonapproximate")
LENGTH = 32


def config_of(*variants: str, **changes: Any) -> Any:
    from tests.cost.test_memory import SMALL

    return replace(SMALL, num_hidden_layers=len(variants), layer_variants=variants, **changes)


def cut_model(config: Any, ranks: int, sequence_parallel: bool, dtype: torch.dtype) -> Any:
    from deconattn.model.init import initialize
    from deconattn.parallel.build import build_model
    from deconattn.parallel.topology import Topology

    model = build_model(config, Topology.create(ranks, 1), sequence_parallel)
    initialize(model, 0, torch.arange(config.max_position_embeddings) % config.vocab_size)
    return model.to(dtype)


def gradients(model: Any, *documents: Tensor) -> list[Tensor]:
    ids = torch.randint(model.config.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = model(ids, ids.roll(-1), *documents).total
    loss.backward()
    return [loss.detach(), *(torch.zeros(1) if p.grad is None else p.grad for p in model.parameters())]


def worst(found: list[Tensor], exact: list[Tensor]) -> float:
    largest = max(float(one.abs().max()) for one in exact[1:])
    pairs = zip(found, exact, strict=True)
    return max(float((a - b).abs().max()) / max(float(b.abs().max()), largest / 100) for a, b in pairs)


def errors(ranks: int, variants: tuple[tuple[str, ...], ...], cases: Cases) -> dict[str, float]:
    """Largest error of fp32 against the plain exchanges, and of fp64 against one process, of all ranks.

    Args:
        cases: sequence parallelism, what is recomputed, and whether there are documents.
    """
    from deconattn.layers.shards import shard_of
    from deconattn.model.causal_lm import CausalLM
    from deconattn.model.init import initialize
    from deconattn.model.recompute import recompute
    from deconattn.parallel import tensor
    from deconattn.parallel.collectives import enter

    documents = (torch.arange(LENGTH) % 10).expand(2, -1), (torch.arange(LENGTH) // 10).expand(2, -1)
    found: dict[str, float] = {}
    ours = tensor.enter_layers
    for names in variants:
        config = config_of(*names, num_key_value_heads=2, qk_norm=True, tie_word_embeddings=True)
        whole = CausalLM(config)
        initialize(whole, 0, torch.arange(config.max_position_embeddings) % config.vocab_size)
        for sequence_parallel, part, masked in cases:
            given = documents if masked else ()
            exact = gradients(whole.double(), *given)
            model = cut_model(config, ranks, sequence_parallel, torch.float64)
            parts = [shard_of(p) for p in model.parameters()]
            mine = [exact[0], *(e if s is None else s.take(e) for s, e in zip(parts, exact[1:], strict=True))]
            recompute(model.model, part)
            case = f"{names}, {sequence_parallel=}, {part}, {masked=}"
            found[f"{case}, fp64"] = worst(gradients(model, *given), mine)
            model = cut_model(config, ranks, sequence_parallel, torch.float32)
            new = gradients(model, *given)
            tensor.enter_layers = lambda h, group, sequence, _: enter(h, group, sequence)
            try:
                old = gradients(model, *given)
            finally:
                tensor.enter_layers = ours
            found[f"{case}, fp32"] = worst(new, old)
    everybody: list[Any] = [None] * ranks
    dist.all_gather_object(everybody, found)
    return {name: max(one[name] for one in everybody) for name in found}


def check(found: dict[str, float]) -> None:
    for name, error in found.items():
        assert error < (1e-12 if "fp64" in name else 5e-6), f"{name}: {error}"


def test_gradients_of_all_variants(ranks: Callable[[int], Ranks]) -> None:
    check(ranks(2)(errors, ranks=2, variants=(VARIANTS,), cases=((False, "none", False), (True, "none", True))))


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_gradients_of_each_variant_by_all_ways(ranks: Callable[[int], Ranks], number: int) -> None:
    variants = (VARIANTS, *((variant, variant) for variant in VARIANTS))
    cases = tuple(product((False, True), ("none", "mixer", "mlp", "layer"), (False, True)))
    check(ranks(number)(errors, ranks=number, variants=variants, cases=cases))


def kept_bytes(ranks: int, dtype: torch.dtype, variants: tuple[str, ...] = VARIANTS) -> list[tuple[str, int, int]]:
    """(case, bytes kept by the layers of a rank, by the formula)."""
    from deconattn.cost.activations import layer_activations, static_bytes
    from deconattn.model.recompute import recompute
    from tests.cost.test_memory import build_job

    found = []
    for variant in variants:
        config = config_of(variant, "standard", variant, max_position_embeddings=128)
        for sequence_parallel in (False, True):
            for part in ("none", "mixer", "mlp", "layer"):
                model = cut_model(config, ranks, sequence_parallel, dtype)
                recompute(model.model, part)
                job = build_job(model=config, bytes_per_element=dtype.itemsize, tp=ranks, recompute=part,
                                sequence_parallel=sequence_parallel)  # fmt: skip
                expected = sum(layer.kept for layer in layer_activations(job)) + static_bytes(job, range(3))
                found.append((f"{variant} {sequence_parallel} {part}", kept_by_layers(model), expected))
    return found


def kept_by_layers(model: Any) -> int:
    hidden = model.model.embed(torch.zeros(2, 128, dtype=torch.long)).detach().requires_grad_()
    context = model.model.context(128, hidden)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output, _ = model.model.run(hidden, hidden if model.model.last_static_layer >= 0 else None, context)
    for known in (*model.parameters(), context.rotary.cos, context.rotary.sin):
        kept.pop(known.untyped_storage().data_ptr(), None)
    del output
    return sum(kept.values())


def check_kept(found: list[tuple[str, int, int]]) -> None:
    for case, kept, expected in found:
        assert kept == pytest.approx(expected, rel=0.03), case


def test_a_rank_keeps_its_part_alone(ranks: Callable[[int], Ranks]) -> None:
    check_kept(ranks(2)(kept_bytes, ranks=2, dtype=torch.float32, variants=("staticemb", "fixedseq")))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_of_four_keeps_its_part_alone(ranks: Callable[[int], Ranks], dtype: torch.dtype) -> None:
    check_kept(ranks(4)(kept_bytes, ranks=4, dtype=dtype))


def communication(sequence_parallel: bool) -> list[str]:
    """Of a step of one layer: collectives as they begin and end, and products, in the backward pass."""
    from deconattn.parallel import collectives, entrance

    model = cut_model(config_of("standard"), 2, sequence_parallel, torch.float32)
    hidden = model.model.embed(torch.zeros(1, 128, dtype=torch.long)).detach().requires_grad_()
    output, _ = model.model.run(hidden, None, model.model.context(128, hidden))
    order: list[str] = []

    def noted(owner: Any, name: str, word: str) -> Callable[[], None]:
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            order.append(word)
            return original(*arguments)

        setattr(owner, name, call)
        return lambda: setattr(owner, name, original)

    undo = [
        noted(entrance, "start_all_gather", "gather"),
        noted(entrance, "start_reduce_scatter", "sum"),
        noted(entrance, "start_all_reduce", "sum"),
        noted(entrance, "input_gradient", "input"),
        noted(entrance, "parameter_gradients", "weights"),
        noted(collectives.Started, "wait", "wait"),
    ]
    output.sum().backward()
    for one in undo:
        one()
    assert hidden.grad is not None
    return order


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_products_run_beside_what_they_do_not_feed(ranks: Callable[[int], Ranks], sequence_parallel: bool) -> None:
    order = ranks(2)(communication, sequence_parallel=sequence_parallel)
    wanted = "gather input sum wait weights wait" if sequence_parallel else "input sum weights wait"
    text = " ".join(order)
    assert text.count(wanted) == 2, text
    assert order.count("gather") == 2 * sequence_parallel and order.count("sum") == 2
