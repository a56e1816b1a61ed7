"""How a whole tensor comes to ZeRO-3's partitions."""

import pytest
import torch

from deconattn.train import zero_state


@pytest.mark.parametrize(("elements", "ranks"), [(32, 5), (32, 3), (6, 2), (2, 5), (1, 3)])
def test_partitions_are_the_tensor_and_zeros(elements: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = -(-elements // ranks)
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_tensor, parameter.ds_process_group = torch.empty(size), object()
    value = torch.arange(1.0, elements + 1).view(-1, 1)
    monkeypatch.setattr(zero_state.dist, "get_world_size", lambda group: ranks)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(zero_state.dist, "get_rank", lambda group, rank=rank: rank)
        parts.append(zero_state._partition(parameter, value))
    assert [part.shape for part in parts] == [(size,)] * ranks
    whole = torch.cat(parts)
    assert torch.equal(whole[:elements], value.flatten())
    assert not whole[elements:].any()
