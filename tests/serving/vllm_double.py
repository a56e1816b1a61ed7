"""What :mod:`deconattn.serving` uses of vLLM 0.33, on one CPU and without vLLM: same signatures, same conventions.

Where vLLM's own behaviour could hide a mistake of ours, this is as strict as vLLM on a GPU: the fused norm overwrites
both its arguments, tensors are flat and hold several sequences, an attention layer keeps keys and values between
calls, tensor-parallel ranks (threads here) hold different heads and meet in collectives, pipeline stages lack the
other stages' layers, and a weight without a place is an error. What it leaves whole: the vocabulary.
`tests/serving/test_vllm_engine.py` compares the signatures with vLLM's where that is installed, and runs the engine.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

_OURS = ("deconattn.serving.vllm_model", "deconattn.serving.vllm_layers")
_here = threading.local()


@dataclass
class Ranks:
    """Tensor-parallel ranks, each a thread, and the pipeline stage they all are."""

    tp_size: int = 1
    stage: int = 0
    stages: int = 1
    parts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.tp_size)
        self.parts = [None] * self.tp_size

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """`work(tp_rank)` on every rank."""
        results: list[Any] = [None] * self.tp_size
        errors: list[BaseException] = []

        def rank(index: int) -> None:
            _here.ranks, _here.tp_rank = self, index
            try:
                with torch.no_grad():
                    results[index] = work(index)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=rank, args=(index,)) for index in range(self.tp_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return results

    def sum(self, part: Tensor) -> Tensor:
        """All-reduce."""
        self.parts[_here.tp_rank] = part
        self.barrier.wait()
        total = torch.stack(self.parts).sum(0)
        self.barrier.wait()
        return total


def get_tensor_model_parallel_world_size() -> int:
    return _here.ranks.tp_size


def get_pp_group() -> SimpleNamespace:
    ranks = _here.ranks
    return SimpleNamespace(
        is_first_rank=ranks.stage == 0,
        is_last_rank=ranks.stage == ranks.stages - 1,
        rank_in_group=ranks.stage,
        world_size=ranks.stages,
    )


def support_torch_compile(cls: type) -> type:
    return cls


class VllmConfig:
    """An engine's configuration."""


class IntermediateTensors:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]


class SupportsPP:
    supports_pp = True


class PPMissingLayer(nn.Identity):
    pass


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            return nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        residual += x
        x.copy_(nn.functional.rms_norm(residual, x.shape[-1:], self.weight, self.eps))
        return x, residual


class SiluAndMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up


class _Sharded(nn.Module):
    """Parameters of which a rank holds pieces; `weight_loader` copies its piece of a checkpoint's tensor."""

    def __init__(self, input_size: int, output_size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((output_size, input_size), torch.nan))
        self.bias = nn.Parameter(torch.full((output_size,), torch.nan)) if bias else None
        for parameter in self.parameters():
            parameter.weight_loader = self.weight_loader  # type: ignore[attr-defined]

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        return nn.functional.linear(input_, self.weight, self.bias), None


class MergedColumnParallelLinear(_Sharded):
    def __init__(
        self,
        input_size: int,
        output_sizes: list[int],
        bias: bool = True,
        *,
        prefix: str = "",
        disable_tp: bool = False,
    ) -> None:
        tp_size = 1 if disable_tp else get_tensor_model_parallel_world_size()
        self.rank = 0 if disable_tp else _here.tp_rank
        assert not any(size % tp_size for size in output_sizes), f"{output_sizes} is not divisible by {tp_size}"
        self.widths = [size // tp_size for size in output_sizes]
        super().__init__(input_size, sum(self.widths), bias)

    def weight_loader(self, param: Tensor, loaded_weight: Tensor, loaded_shard_id: int) -> None:
        width = self.widths[loaded_shard_id]
        mine = param.data.narrow(0, sum(self.widths[:loaded_shard_id]), width)
        mine.copy_(loaded_weight.narrow(0, self.rank * width, width))


class QKVParallelLinear(_Sharded):
    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        *,
        prefix: str = "",
        v_head_size: int | None = None,
    ) -> None:
        tp_size, shared = get_tensor_model_parallel_world_size(), total_num_kv_heads or total_num_heads
        v_head_size = head_size if v_head_size is None else v_head_size
        assert not total_num_heads % tp_size
        assert not max(tp_size, shared) % min(tp_size, shared)
        heads, shared_heads = total_num_heads // tp_size, max(1, shared // tp_size)
        self.replicas = max(1, tp_size // shared)
        self.widths = {"q": heads * head_size, "k": shared_heads * head_size, "v": shared_heads * v_head_size}
        super().__init__(hidden_size, sum(self.widths.values()), bias)

    def weight_loader(self, param: Tensor, loaded_weight: Tensor, loaded_shard_id: str) -> None:
        names, width = list(self.widths), self.widths[loaded_shard_id]
        offset = sum(self.widths[name] for name in names[: names.index(loaded_shard_id)])
        rank = _here.tp_rank // (1 if loaded_shard_id == "q" else self.replicas)
        mine, whole = param.data.narrow(0, offset, width), loaded_weight.narrow(0, rank * width, width)
        assert mine.shape == whole.shape
        mine.copy_(whole)


class RowParallelLinear(_Sharded):
    def __init__(
        self, input_size: int, output_size: int, bias: bool = True, *, prefix: str = "", disable_tp: bool = False
    ) -> None:
        self.whole, self.rank = disable_tp, 0 if disable_tp else _here.tp_rank
        self.width = input_size if disable_tp else input_size // get_tensor_model_parallel_world_size()
        super().__init__(self.width, output_size, bias)

    def weight_loader(self, param: Tensor, loaded_weight: Tensor) -> None:
        mine = loaded_weight.narrow(1, self.rank * self.width, self.width)
        assert param.shape == mine.shape
        param.data.copy_(mine)

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        part = super().forward(input_)[0]
        return part if self.whole else _here.ranks.sum(part), None


class VocabParallelEmbedding(nn.Module):
    def __init__(self, num_embeddings: int, embedding_dim: int, *, prefix: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_embeddings, embedding_dim), torch.nan))

    def forward(self, input_: Tensor) -> Tensor:
        return nn.functional.embedding(input_, self.weight)


class ParallelLMHead(VocabParallelEmbedding):
    def tie_weights(self, embed_tokens: VocabParallelEmbedding) -> VocabParallelEmbedding:
        self.weight = embed_tokens.weight
        return self


class LogitsProcessor(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()

    def forward(self, lm_head: VocabParallelEmbedding, hidden_states: Tensor) -> Tensor:
        return nn.functional.linear(hidden_states, lm_head.weight)


class _Rope(nn.Module):
    def __init__(self, head_size: int, max_position: int, theta: float) -> None:
        super().__init__()
        self.head_size = head_size
        angles = torch.arange(max_position)[:, None] / theta ** (torch.arange(0, head_size, 2) / head_size)
        self.register_buffer("angles", angles[:, None], persistent=False)

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.angles[positions].cos(), self.angles[positions].sin()

        def rotate(flat: Tensor) -> Tensor:
            first, second = flat.unflatten(-1, (-1, self.head_size)).chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)

        return rotate(query), rotate(key)


def get_rope(
    head_size: int,
    max_position: int,
    is_neox_style: bool = True,
    rope_parameters: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> _Rope:
    assert is_neox_style
    assert rope_parameters is not None
    assert rope_parameters["rope_type"] == "default"
    return _Rope(head_size, max_position, rope_parameters["rope_theta"])


class Attention(nn.Module):
    """Keeps every sequence's keys and values; `sequences` says which the flat tokens are of: (name, tokens) each."""

    sequences: list[tuple[str, int]] = []  # noqa: RUF012

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        *,
        cache_config: Any = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.shapes = ((num_heads, head_size), (num_kv_heads or num_heads, head_size))
        self.scale, self.group = scale, num_heads // (num_kv_heads or num_heads)
        self.cache: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        counts = [count for _, count in self.sequences]
        assert len(query) == sum(counts)
        heads, shared = self.shapes
        flat = (query.unflatten(-1, heads), key.unflatten(-1, shared), value.unflatten(-1, shared))
        mixed = []
        for (name, count), new, keys, values in zip(self.sequences, *(one.split(counts) for one in flat), strict=True):
            if name in self.cache:
                keys, values = (torch.cat(pair) for pair in zip(self.cache[name], (keys, values), strict=True))
            self.cache[name] = (keys, values)
            scores = torch.einsum("qhd,khd->hqk", new, keys.repeat_interleave(self.group, 1)) * self.scale
            visible = torch.ones(count, len(keys), dtype=torch.bool).tril(len(keys) - count)
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            mixed.append(torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(self.group, 1)).flatten(1))
        return torch.cat(mixed)


class WeightsMapper:
    def __init__(self, *, orig_to_new_stacked: dict[str, tuple[str, Any]]) -> None:
        self.stacked = orig_to_new_stacked

    def map(self, name: str) -> tuple[str, Any]:
        part = None
        for ours, (theirs, its_part) in self.stacked.items():
            if ours in name:
                name, part = name.replace(ours, theirs, 1), its_part
        return name, part


class AutoWeightsLoader:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, mapper: WeightsMapper) -> set[str]:
        missing = [f"{name}." for name, module in self.module.named_modules() if isinstance(module, PPMissingLayer)]
        places = dict(self.module.named_parameters()) | {
            name: buffer for name, buffer in self.module.named_buffers() if name in self.module.state_dict()
        }
        loaded = set()
        for checkpoint_name, tensor in weights:
            name, part = mapper.map(checkpoint_name)
            if name.startswith(tuple(missing)):
                continue
            if name not in places:
                raise ValueError(f"There is no module or parameter named {name!r}")
            place, loader = places[name], getattr(places[name], "weight_loader", None)
            if loader is not None:
                loader(place, tensor, *([] if part is None else [part]))
            else:
                assert place.shape == tensor.shape
                place.data.copy_(tensor)
            loaded.add(name)
        return loaded


def extract_layer_index(layer_name: str) -> int:
    (index,) = [int(part) for part in layer_name.split(".") if part.isdigit()]
    return index


def maybe_prefix(prefix: str, name: str) -> str:
    return name if not prefix else f"{prefix}.{name}"


def make_layers(num_hidden_layers: int, layer_fn: Callable[..., nn.Module], prefix: str) -> tuple[int, int, Any]:
    group = get_pp_group()
    bounds = [num_hidden_layers * stage // group.world_size for stage in range(group.world_size + 1)]
    start, end = bounds[group.rank_in_group], bounds[group.rank_in_group + 1]
    layers = (
        layer_fn(prefix=f"{prefix}.{index}") if start <= index < end else PPMissingLayer()
        for index in range(num_hidden_layers)
    )
    return start, end, nn.ModuleList(layers)


def make_empty_intermediate_tensors_factory(keys: list[str], hidden_size: int) -> Callable[..., IntermediateTensors]:
    return lambda batch_size, dtype, device: IntermediateTensors(
        {key: torch.zeros(batch_size, hidden_size, dtype=dtype, device=device) for key in keys}
    )


def set_default_rope_theta(config: Any, default_theta: float) -> None:
    if getattr(config, "rope_parameters", None) is None:
        config.rope_parameters = {"rope_type": "default"}
    config.rope_parameters.setdefault("rope_theta", default_theta)


class _ModelRegistry:
    def __init__(self) -> None:
        self.models: dict[str, str] = {}

    def register_model(self, model_arch: str, model_cls: str) -> None:
        self.models[model_arch] = model_cls


CONTENTS: dict[str, dict[str, Any]] = {
    "vllm": {"ModelRegistry": _ModelRegistry()},
    "vllm.compilation.decorators": {"support_torch_compile": support_torch_compile},
    "vllm.config": {"VllmConfig": VllmConfig},
    "vllm.distributed": {
        "get_pp_group": get_pp_group,
        "get_tensor_model_parallel_world_size": get_tensor_model_parallel_world_size,
    },
    "vllm.model_executor.layers.activation": {"SiluAndMul": SiluAndMul},
    "vllm.model_executor.layers.attention": {"Attention": Attention},
    "vllm.model_executor.layers.layernorm": {"RMSNorm": RMSNorm},
    "vllm.model_executor.layers.linear": {
        "MergedColumnParallelLinear": MergedColumnParallelLinear,
        "QKVParallelLinear": QKVParallelLinear,
        "RowParallelLinear": RowParallelLinear,
    },
    "vllm.model_executor.layers.logits_processor": {"LogitsProcessor": LogitsProcessor},
    "vllm.model_executor.layers.rotary_embedding": {"get_rope": get_rope},
    "vllm.model_executor.layers.vocab_parallel_embedding": {
        "ParallelLMHead": ParallelLMHead,
        "VocabParallelEmbedding": VocabParallelEmbedding,
    },
    "vllm.model_executor.models.config": {"MODELS_CONFIG_MAP": {}},
    "vllm.model_executor.models.interfaces": {"SupportsPP": SupportsPP},
    "vllm.model_executor.models.utils": {
        "AutoWeightsLoader": AutoWeightsLoader,
        "PPMissingLayer": PPMissingLayer,
        "WeightsMapper": WeightsMapper,
        "extract_layer_index": extract_layer_index,
        "make_empty_intermediate_tensors_factory": make_empty_intermediate_tensors_factory,
        "make_layers": make_layers,
        "maybe_prefix": maybe_prefix,
    },
    "vllm.sequence": {"IntermediateTensors": IntermediateTensors},
    "vllm.transformers_utils.config": {"set_default_rope_theta": set_default_rope_theta},
}
"""What is in which of vLLM's modules."""


@contextmanager
def installed() -> Iterator[None]:
    """In place of vLLM, installed or not; what was imported of it, and of ours on top of it, is back afterwards."""
    hidden = [name for name in sys.modules if name.split(".")[0] == "vllm" or name in _OURS]
    kept = {name: sys.modules.pop(name) for name in hidden}
    for path, contents in CONTENTS.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in sys.modules:
                sys.modules[name] = ModuleType(name)
                sys.modules[name].__path__ = []  # type: ignore[attr-defined]
        vars(sys.modules[path]).update(contents)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm" or name in _OURS]:
            del sys.modules[name]
        sys.modules.update(kept)
