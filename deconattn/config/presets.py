"""Sizes of models: dimensions and the training defaults that go with them (tables 9 and 10 of the paper)."""

from dataclasses import dataclass

from deconattn.config.flag_groups import DataFlags, ModelFlags, OptimizationFlags, RunFlags
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError


@dataclass(frozen=True)
class Size:
    """A preset: dimensions (table 10) and the training defaults that go with them (table 9)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    qwen3: bool = False
    lr: float = 4e-4
    seq_len: int = 2048
    global_batch_size: int = 256
    micro_batch_size: int = 8
    steps: int = 120_000
    save_every: int = 1000
    eval_every: int = 1000
    eval_sequences: int = 512
    num_key_value_heads: int = 0


SIZES = {
    "tiny": Size(128, 384, 4, 4, False, 2e-3, 256, 16, 8, 300, 100, 100, 64),
    "70m": Size(512, 2048, 6, 8, micro_batch_size=4),
    "160m": Size(768, 3072, 12, 12),
    "500m": Size(896, 4864, 24, 14),
    "1.7b": Size(2048, 6144, 28, 16, qwen3=True, lr=3e-4, micro_batch_size=4),
    # Beyond the paper: Llama 2's dimensions and training (arXiv 2307.09288, tables 1 and 19), Qwen3's norms.
    "7b": Size(4096, 11008, 32, 32, True, 3e-4, 4096, 1024, 1, 480_000),
    "70b": Size(8192, 28672, 80, 64, True, 1.5e-4, 4096, 1024, 1, 480_000, num_key_value_heads=8),
}


def size_defaults(name: str) -> TrainingFlags:
    """Return all defaults of a size.

    Raises:
        UserError: no such size.
    """
    if name not in SIZES:
        raise UserError(f"unknown size {name!r}: choose one of {', '.join(SIZES)}, and override its fields by flags")
    size = SIZES[name]
    return TrainingFlags(
        model=ModelFlags(
            size=name,
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_hidden_layers,
            num_attention_heads=size.num_attention_heads,
            num_key_value_heads=size.num_key_value_heads,
            attention_bias=not size.qwen3,
            qk_norm=size.qwen3,
        ),
        data=DataFlags(seq_len=size.seq_len),
        optimization=OptimizationFlags(
            global_batch_size=size.global_batch_size,
            micro_batch_size=size.micro_batch_size,
            steps=size.steps,
            lr=size.lr,
        ),
        run=RunFlags(save_every=size.save_every, eval_every=size.eval_every, eval_sequences=size.eval_sequences),
    )
