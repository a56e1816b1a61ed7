"""Job to plan: a model, how it is trained, and over which ranks."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from deconattn.config.deepspeed import deepspeed_config
from deconattn.config.flag_groups import Optimizer, Recompute
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.parallel.stages import stage_spans

BUCKET = 500_000_000
"""DeepSpeed 0.19.8's `reduce_bucket_size`, elements, where the configuration sets none."""


@dataclass(frozen=True)
class Job:
    """Training job: what the costs of a run depend on.

    Attributes:
        length: tokens of a sequence, which `cp` ranks share.
        micro_batch: sequences in one forward pass of one replica.
        accumulation: micro-batches of one replica in an optimiser step.
        bytes_per_element: of weights and activations, 2 or 4.
        bucket: elements of DeepSpeed's gradient bucket.
        buckets: how many of them ZeRO-1 and 2 hold (two where communication overlaps computation).
        reduced_bytes: bytes an element of what gradients are reduced in.
        second_copy: ranks that keep a second copy of ZeRO-3's weights between them; 0 for none.
        quantized_weights: whether ZeRO-3 gathers them in 8 bits.
        gpu: kernels of GPUs and NCCL, else of CPUs and gloo.
        gpu_memory: of a GPU, GiB.
        optimizer: of the hidden layers' matrices; the rest has AdamW.
    """

    model: ModelConfig
    length: int
    micro_batch: int
    accumulation: int
    bytes_per_element: int
    zero: int
    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    recompute: Recompute = "none"
    bucket: int = BUCKET
    buckets: int = 1
    reduced_bytes: int = 4
    second_copy: int = 0
    quantized_weights: bool = False
    gpu: bool = True
    gpu_memory: float = 80.0
    optimizer: Optimizer = "adamw"

    @classmethod
    def of(
        cls, model: ModelConfig, flags: TrainingFlags, ranks: int, gpu: bool = True, gpu_memory: float = 80.0
    ) -> "Job":
        """Return the job of `flags` on `ranks` ranks, in the phase whose micro-batches have most tokens.

        Raises:
            UserError: flags that do not go together or with the model, batches or ranks that do not divide, or a
                DeepSpeed file that offloads.
        """
        engine, heaviest = flags.engine, flags.plan.heaviest
        engine.check(model, heaviest.seq_len)
        dp = engine.data_parallel_size(ranks)
        flags.accumulation_steps(dp)
        accumulation = heaviest.micro_batches(dp)
        config = deepspeed_config(flags, accumulation)
        zero = config.get("zero_optimization", {})
        for offload in ("offload_optimizer", "offload_param"):
            if zero.get(offload, {}).get("device", "none") != "none":
                raise UserError(f"--deepspeed-config sets {offload}: what is offloaded is not planned; leave it out")
        return cls(
            model=model,
            length=heaviest.seq_len,
            micro_batch=heaviest.micro,
            accumulation=accumulation,
            bytes_per_element=2 if engine.precision == "bf16" else 4,
            zero=zero.get("stage", 0),
            tp=engine.tp,
            pp=engine.pp,
            dp=dp,
            cp=engine.cp,
            sequence_parallel=engine.sequence_parallel,
            recompute=engine.recompute,
            bucket=int(zero.get("reduce_bucket_size", BUCKET)),
            buckets=2 if zero.get("overlap_comm") and zero.get("stage") in (1, 2) else 1,
            reduced_bytes=4 if config["communication_data_type"] == "fp32" else 2,
            second_copy=engine.zero_hpz,
            quantized_weights=engine.zero_quantized_weights,
            gpu=gpu,
            gpu_memory=gpu_memory,
            optimizer=flags.optimization.optimizer,
        )

    @cached_property
    def spans(self) -> tuple[range, ...]:
        """Layer indices of each pipeline stage."""
        return _spans(self.model, self.pp, self.length)

    @property
    def gpu_bytes(self) -> int | None:
        """Memory of a GPU in bytes; None on CPUs."""
        return int(self.gpu_memory * 2**30) if self.gpu else None

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.zero_size

    @property
    def zero_size(self) -> int:
        """Number of ranks that hold the same part of the model: replicas, and in each those that share a sequence."""
        return self.dp * self.cp

    @property
    def shape(self) -> str:
        """How the ranks are shared out, in a few words."""
        context = f" x cp {self.cp}" if self.cp > 1 else ""
        return f"tp {self.tp}{context} x pp {self.pp} x dp {self.dp}"

    @property
    def part(self) -> int:
        """Tokens of a sequence on one rank, before sequence parallelism cuts them."""
        return self.length // self.cp

    @property
    def sequence_parallel_size(self) -> int:
        """Number of parts that sequence parallelism cuts the sequence into between tensor-parallel regions."""
        return self.tp if self.sequence_parallel else 1

    @property
    def gathers_again(self) -> bool:
        """Whether layers keep their parts of what they have gathered, and gather it again in the backward pass.

        ZeRO-3's hooks stand between the gathering and the layers.
        """
        return self.sequence_parallel and self.zero < 3

    def in_flight(self, stage: int) -> int:
        """Micro-batches whose activations a stage holds at once in the 1F1B schedule (Narayanan et al. 2021)."""
        return min(self.pp - stage, self.accumulation)

    @property
    def bubble(self) -> float:
        """Bubble fraction: share of a step in which a stage waits for the pipeline to fill and drain."""
        return (self.pp - 1) / (self.accumulation + self.pp - 1)


_spans = lru_cache(maxsize=256)(stage_spans)
