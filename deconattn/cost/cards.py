"""GPUs: what their makers promise, and which part of it programs reach.

Peaks are dense, of the data sheets (bf16: :mod:`deconattn.cost.hardware`). What is reached, by what was published, and
where nothing was, as assumed here:

- Large products: H100 and H200 720 of 989 TFLOP/s, MI300X 620 of 1307 (SemiAnalysis, "MI300X vs H100 vs H200 benchmark
  part 1: training", December 2024). A100: assumed 0.8 of its peak. B200: assumed as the H100.
- Narrow products lose in their first and last tiles. Assumed: `large` x least / (least + 256) for the least dimension,
  0.57 of the H100's peak at 896 and 0.65 at 2048.
- Attention with causal masks at 2048 tokens on an H100: FlashAttention-3's paper (arXiv 2407.08608, figures 5 and 6).
  cuDNN, which PyTorch takes there, forward: 334 TFLOP/s at head size 64, 484 at 128. Backward 395 and 465 without
  masks; assumed to lose by masks what the forward pass does, 0.85 and 0.78. A100: the lower end of FlashAttention-2's
  50 to 73 % of peak (arXiv 2307.08691) at this length. B200: assumed as the H100, as a part of the peak; MI300X: half.
- Our mixing kernels: Triton's attention in the same figures, 342 TFLOP/s forward at head size 64, and backward
  FlashAttention-2's 264 without masks, as parts of the peak. Assumed on every card.
- Memory: assumed 0.87 of the data sheet's rate; large copies reach 0.85 to 0.9.
- Launches: 0.9 microseconds pass between kernels of one stream, and one costs the host 3.8 without PyTorch (NVIDIA,
  "Getting started with CUDA graphs", 2019). With PyTorch's dispatch, autograd and allocator: assumed.
"""

from dataclasses import dataclass

from deconattn.cost.hardware import PEAK_BF16_FLOPS
from deconattn.cost.work import Work

HOST_EAGER, HOST_COMPILED = 8e-6, 5e-6
"""Seconds of the host for a launch: out of Python, operator by operator, and out of torch.compile's code."""
GAP = 0.9e-6
"""Seconds of the device between two kernels."""
OF_BANDWIDTH = 0.87
OUR_FORWARD, OUR_BACKWARD = 0.35, 0.23
"""Part of the peak that our mixing kernels are taken to reach."""
NARROW_LOSS = 256


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        narrow, single: peak FLOP/s in bf16 and in fp32 without tensor cores.
        bandwidth: bytes/s of its memory.
        memory: GiB of it.
        large: part of the bf16 peak that large products reach.
        attention: part of the peak that attention reaches, by head size: forward, backward.
    """

    narrow: float
    single: float
    bandwidth: float
    memory: float
    large: float
    attention: dict[int, tuple[float, float]]

    def best(self, work: Work) -> float:
        """Seconds at the data sheet's rates, launches for nothing."""
        return max(work.flops / self._peak(work), work.bytes / self.bandwidth)

    def expected(self, work: Work) -> float:
        """Seconds at the rates that programs reach."""
        computing = work.flops / (self._peak(work) * self._reached(work))
        return max(computing, work.bytes / (self.bandwidth * OF_BANDWIDTH)) + work.launches * GAP

    def _peak(self, work: Work) -> float:
        return self.narrow if work.narrow else self.single

    def _reached(self, work: Work) -> float:
        if work.kind == "kernel":
            return OUR_BACKWARD if work.backward else OUR_FORWARD
        if work.kind == "attention":
            return self.attention[64 if work.smallest <= 64 else 128][work.backward]
        if work.kind == "product":
            return self.large * work.smallest / (work.smallest + NARROW_LOSS) if work.narrow else 0.8
        return 1.0


_HOPPER = {64: (334 / 989, 395 * 0.85 / 989), 128: (484 / 989, 465 * 0.78 / 989)}
_HALF = {width: (forward / 2, backward / 2) for width, (forward, backward) in _HOPPER.items()}
CARDS = {
    "A100": Card(PEAK_BF16_FLOPS["A100"], 19.5e12, 2.039e12, 80, 0.8, {64: (0.5, 0.42), 128: (0.6, 0.5)}),
    "H100": Card(PEAK_BF16_FLOPS["H100"], 67e12, 3.35e12, 80, 720 / 989, _HOPPER),
    "H200": Card(PEAK_BF16_FLOPS["H200"], 67e12, 4.8e12, 141, 720 / 989, _HOPPER),
    "B200": Card(PEAK_BF16_FLOPS["B200"], 80e12, 8e12, 180, 720 / 989, _HOPPER),
    "MI300X": Card(PEAK_BF16_FLOPS["MI300X"], 163.4e12, 5.3e12, 192, 620 / 1307, _HALF),
}
"""The SXM or OAM versions, 80 GB of the A100."""
