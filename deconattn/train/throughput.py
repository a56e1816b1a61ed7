"""Throughput of a training: tokens a second, and the share of the GPUs' peak that useful FLOPs make (MFU)."""

import time
from functools import cache, partial

import torch
import torch.distributed

from deconattn.config.steps import Stretch
from deconattn.cost.hardware import peak_flops
from deconattn.layers.config import ModelConfig
from deconattn.model.flops import training_flops


class Clock:
    """Clock of the throughput since the last row, validation and checkpoints not counted."""

    def __init__(self, config: ModelConfig, replicas: int) -> None:
        self._flops, self._replicas = cache(partial(training_flops, config)), replicas
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._peak = peak * torch.distributed.get_world_size() if peak else None
        self._steps = self._tokens = 0
        self._work = 0.0
        self._since: float | None = None

    def tick(self, step: Stretch) -> None:
        """Count a step that ended."""
        if self._since is None:  # the first step's time is start-up
            self._since = time.perf_counter()
        else:
            self._steps += 1
            self._tokens += step.batch * step.seq_len
            self._work += self._replicas * self._flops(step.batch // self._replicas, step.seq_len)

    def rates(self) -> dict[str, float]:
        """Return `tokens_per_second` over all ranks, and `mfu` where the device's peak is known."""
        if self._since is None or not self._steps:
            return {}
        seconds = time.perf_counter() - self._since
        rates = {"tokens_per_second": round(self._tokens / seconds, 1)}
        if self._peak:
            rates["mfu"] = round(self._work / seconds / self._peak, 4)
        self.restart()
        return rates

    def restart(self) -> None:
        """Exclude the time since the last step."""
        self._since = time.perf_counter()
        self._steps = self._tokens = 0
        self._work = 0.0
