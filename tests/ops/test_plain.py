"""The paths that exports carry: the formulas' values and gradients in float64, block by block, in linear memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deconattn.ops import plain, reference
from deconattn.ops.documents import Documents
from tests.ops.test_mixing import assert_same, document_ids, drawn

LENGTHS = (1, 15, 16, 17, 32, 70)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "ROWS", 16)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("groups", [1, 3])
def test_values_and_gradients(groups: int, masked: bool) -> None:
    for length in LENGTHS:
        queries, keys, values = drawn(2, 2 * groups, length, 4), drawn(2, 2, length, 4, seed=1), drawn(2, 2, length, 4)
        ids = document_ids(2, length) if masked else None
        documents = None if ids is None else Documents(ids, torch.zeros_like(ids))
        for ours, theirs in (
            (plain.taylor_attention(queries, keys, values, ids), reference.taylor_attention),
            (plain.prefix_attention(queries, keys, values, ids), reference.prefix_attention),
            (plain.causal_attention(queries, keys, values, documents), reference.softmax_attention),
        ):
            assert_same(ours, theirs(queries, keys, values, ids), [queries, keys, values])
        scores = drawn(2, 2 * groups, length)
        expected = reference.prefix_average(scores, values, ids)
        assert_same(plain.prefix_average(scores, values, ids), expected, [scores, values])


@pytest.mark.parametrize("groups", [1, 3])
def test_a_map_that_all_rows_share(groups: int) -> None:
    for length in LENGTHS:
        queries, keys, values = drawn(2 * groups, length, 4), drawn(2, length, 4, seed=1), drawn(3, 2, length, 4)
        expected = reference.fixed_map_attention(queries, keys, values)
        assert_same(plain.fixed_map_attention(queries, keys, values), expected, [queries, keys, values])


OPERATIONS = {
    "taylor": plain.taylor_attention,
    "prefix": plain.prefix_attention,
    "fixed": lambda queries, keys, values: plain.fixed_map_attention(queries[0], keys[0], values),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_training_keeps_no_map(operation: Callable[..., Tensor]) -> None:
    """Of what is kept for the backward pass, twice the length takes twice as much."""

    def kept(length: int) -> int:
        storages = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            operation(*(torch.randn(1, 2, length, 4, requires_grad=True) for _ in range(3)))
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    assert kept(1024) <= 2.1 * kept(512)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_one_graph_serves_every_length(operation: Callable[..., Tensor], groups: int) -> None:
    class Module(torch.nn.Module):
        def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return operation(queries, keys, values)

    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {name: {2: length} for name in ("queries", "keys", "values")}
    inputs = [drawn(2, heads, 100, 4, seed=heads).detach() for heads in (2 * groups, 2, 2)]
    exported = torch.export.export(Module(), tuple(inputs), dynamic_shapes=shapes).module()
    for tokens in (3, 40, 100):
        shorter = [tensor[:, :, :tokens].contiguous() for tensor in inputs]
        torch.testing.assert_close(exported(*shorter), operation(*shorter), rtol=1e-10, atol=1e-11)
