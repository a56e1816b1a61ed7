"""The ledger of bytes, and tensors that say they are on a GPU."""

import torch

from deconattn.dry_run.ledger import Ledger
from deconattn.dry_run.virtual_gpu import GPU, VirtualGpu


def test_bytes_held_and_their_peak():
    with Ledger() as ledger:
        one = torch.zeros(1024, device="meta")
        two = one + 1
        assert ledger.held == ledger.peak == 2 * 4096
        view = two[:10]
        del one, two
        assert ledger.held == 4096  # the view keeps its whole storage
        del view
        assert (ledger.held, ledger.peak) == (0, 2 * 4096)


def test_meta_tensors_are_on_a_gpu():
    with VirtualGpu():
        tensor = torch.zeros(3, device="cuda")
        assert tensor.is_cuda and tensor.device == GPU
        assert tensor.to("cuda:0") is tensor
        assert (tensor + 1).sum().item() == 1.0  # what nobody knows
        assert torch.zeros(3).device.type == "cpu"
    assert tensor.is_meta
