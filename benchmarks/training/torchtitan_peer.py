"""torchtitan's llama3 at our dimensions, trained as its trainer does on one GPU.

Its model classes come from a checkout (`git clone --branch v0.2.2 https://github.com/pytorch/torchtitan`). What else
its packages import (data, metrics, checkpoints) is not needed for a step and seldom installed, so those modules are
replaced by empty ones. The recipe: every block compiled by itself, FSDP2 on a mesh of one GPU for bf16 weights with
fp32 master weights and gradients reduced in fp32, a compiled cross-entropy on whole logits, clipping, fused AdamW, no
activation checkpointing. Llama has no bias on Q, K and V, 0.02 % fewer parameters than ours at 500m.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy

from benchmarks.training.contestants import Contestant, Place, Step, Workload, adamw
from deconattn.data import Batch
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

LLAMA = "torchtitan.models.llama3"
NOT_NEEDED = ("torchtitan.components", "torchtitan.config", "torchtitan.distributed")


def prepare_torchtitan(contestant: Contestant, workload: Workload) -> Place:
    """Its Transformer, from the workload's checkout."""
    flags = workload.flags(contestant)
    torch.manual_seed(workload.seed)
    model = _transformer(Path(workload.torchtitan), workload.model_config(contestant))
    loss_function = torch.compile(_loss) if contestant.compile else _loss

    def place(device: torch.device) -> Step:
        model.to(device)
        if contestant.compile:
            for block in model.layers.values():
                block.compile(fullgraph=True)
        _shard(model, device)
        optimizer = adamw(model, flags)

        def step(batch: Batch) -> tuple[Tensor, bool]:
            batch = batch.to(device)
            loss = loss_function(model(batch.input_ids), batch.labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), flags.optimization.clip_grad, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach(), False

        return step

    return place


def _transformer(checkout: Path, ours: ModelConfig) -> Any:
    """torchtitan's model of our dimensions, with its own initial weights.

    Raises:
        UserError: no checkout there, or one whose feed-forward block has another width.
    """
    package = checkout / "torchtitan" / "models" / "llama3"
    if not (package / "model" / "model.py").is_file():
        raise UserError(f"--torchtitan {checkout}: no llama3 model there; give a checkout of torchtitan v0.2.2")
    _make_importable(checkout, package)
    arguments_class = importlib.import_module(f"{LLAMA}.model.args").TransformerModelArgs
    model_class = importlib.import_module(f"{LLAMA}.model.model").Transformer
    model = model_class(
        arguments_class(
            dim=ours.hidden_size,
            n_layers=ours.num_hidden_layers,
            n_heads=ours.num_attention_heads,
            n_kv_heads=ours.num_key_value_heads,
            vocab_size=ours.vocab_size,
            # The width is 8/3 of dim times the multiplier, rounded up to a multiple: here, to one times ours.
            multiple_of=ours.intermediate_size,
            ffn_dim_multiplier=min(1.0, 3 * ours.intermediate_size / (8 * ours.hidden_size)),
            norm_eps=ours.rms_norm_eps,
            rope_theta=ours.rope_theta,
            max_seq_len=ours.max_position_embeddings,
        )
    )
    width = model.layers["0"].feed_forward.w1.out_features
    if width != ours.intermediate_size:
        raise UserError(f"--torchtitan {checkout}: its feed-forward width is {width}, ours {ours.intermediate_size}")
    with torch.no_grad():
        model.init_weights()
    return model


def _shard(model: Any, device: torch.device) -> None:
    """FSDP2 on this one device: nothing is shared out, but weights are bf16 in use and fp32 in the optimiser."""
    mesh = init_device_mesh(device.type, (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def shard(module: nn.Module | list[nn.Module], reshard_after_forward: bool = True) -> None:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)

    shard(model.tok_embeddings)
    for block in model.layers.values():
        shard(block)
    shard([model.norm, model.output], reshard_after_forward=False)
    shard(model)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _make_importable(checkout: Path, package: Path) -> None:
    """Put the checkout on the path, without `llama3/__init__.py`, which imports the whole trainer."""
    sys.path.insert(0, str(checkout))
    sys.meta_path.insert(0, _EmptyModules())
    bare = ModuleType(LLAMA)
    bare.__path__ = [str(package)]
    sys.modules[LLAMA] = bare


class _EmptyModules(MetaPathFinder, Loader):
    """Finds what is :data:`NOT_NEEDED`: modules that have a class of every name."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        needed = not any(fullname == name or fullname.startswith(f"{name}.") for name in NOT_NEEDED)
        return None if needed else ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class _EmptyModule(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
