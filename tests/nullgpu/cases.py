"""Trainings that the null GPU's test and table are made of: each option, stage and topology against each variant."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.cost.job import Job
from deconattn.cost.memory import stage_peak
from deconattn.mixers import variant_names

VOCABULARY = 50304
MICRO_BATCHES = 3
"""Of a replica in a step."""
OPTIONS = {
    "": "",
    "checkpointing": "--recompute layer",
    "recompute mixer": "--recompute mixer",
    "recompute mlp": "--recompute mlp",
    "doc-mask": "--doc-mask",
    "compile": "--compile",
    "compile, doc-mask": "--compile --doc-mask",
}
TOPOLOGIES = {
    "dp 2": (2, ""),
    "tp 2": (2, "--tp 2"),
    "tp 2, sequence": (2, "--tp 2 --sequence-parallel"),
    "pp 2": (2, "--pp 2"),
    "tp 2 x pp 2": (4, "--tp 2 --pp 2"),
}
"""Ranks and flags by name."""


@dataclass(frozen=True)
class Case:
    """A training of one variant under one option, on one topology or on one rank ("").

    Attributes:
        stage: ZeRO's; in stage 0 the precision is fp32, as bf16 needs one above it.
        layers: of the model; 0 is the size's own.
    """

    variant: str
    stage: int
    option: str = ""
    topology: str = ""
    layers: int = 0

    @property
    def ranks(self) -> int:
        return TOPOLOGIES[self.topology][0] if self.topology else 1

    @property
    def precision(self) -> str:
        return "bf16" if self.stage else "fp32"

    def words(self, size: str, data: Path, layers: int = 0) -> list[str]:
        """Return the flags of 8 x 2048 tokens a micro-batch.

        Args:
            layers: of a case that says none.
        """
        replicas = self.ranks if self.topology.startswith("dp") else 1
        words = f"--size {size} --vocab-size {VOCABULARY} --seq-len 2048 --micro-batch-size 8 --data {data}"
        words += f" --global-batch-size {8 * MICRO_BATCHES * replicas} --variant {self.variant} --zero {self.stage}"
        words += f" --precision {self.precision} {OPTIONS[self.option]}"
        words += f" {TOPOLOGIES[self.topology][1]}" if self.topology else ""
        if number := self.layers or layers:
            words += f" --num-hidden-layers {number}"
        return words.split()


def of_every_variant(variants: Sequence[str] = ()) -> list[Case]:
    """Return each ZeRO stage and each option against each variant, on one rank."""
    every = variants or variant_names()
    stages = [Case(variant, stage) for variant in every for stage in range(4)]
    return stages + [Case(variant, 1, option) for option in OPTIONS if option for variant in every]


def of_topologies(ranks: int) -> list[Case]:
    """Return the topologies of so many ranks against the stages that they go with, of a variant with a stream."""
    return [
        Case("rndemb", stage, topology=topology)
        for topology, (size, flags) in TOPOLOGIES.items()
        for stage in range(2 if "--pp" in flags else 4)
        if size == ranks
    ]


def planned(words: Sequence[str], ranks: int, rank: int = 0) -> float:
    """Return the peak that the planner names for a rank of an 80 GiB GPU, GiB."""
    flags: TrainingFlags = parse_training_flags(list(words))
    config = model_config(flags.model, flags.model.vocab_size, flags.data.seq_len)
    job = Job.of(config, flags, ranks)
    return stage_peak(job, rank * job.pp // ranks).memory.total / 2**30
