"""GPUs: what their makers promise, and which part of it programs were measured to reach.

Peaks are dense, of the data sheets (bf16: :mod:`deconattn.cost.hardware`). What is reached, where it was published:

- Products: MI300X 620 of 1307 TFLOP/s, H100 and H200 720 of 989 by large square products in SemiAnalysis, "MI300X vs
  H100 vs H200 benchmark part 1: training" (December 2024); A100 by NVIDIA's cuBLAS some 80 % of 312; B200 as H100. That
  is what large products reach (`large`); where the least dimension is below 4096 a product loses in its first and last
  tiles, taken here as `large` x least / (least + 256): 0.57 of the H100's peak at 896, in the middle of the 0.5 to 0.65
  that narrow products are reported at.
- Attention with causal masks at 2048 tokens, H100: FlashAttention-3's paper (arXiv 2407.08608, figures 5 and 6): cuDNN,
  which PyTorch takes there, 334 TFLOP/s at head size 64 and 484 at 128; backward it has 395 and 465 without masks, which
  is scaled by the forward pass's loss of 0.85 and 0.78. A100: FlashAttention-2's paper (arXiv 2307.08691), 50 to 73 % of
  peak, the lower end at this length. B200's and MI300X's are no published figures at this size but fractions: B200 as the
  H100's, MI300X half of them.
- Our mixing kernels: Triton's attention in the same figures, 342 TFLOP/s forward at head size 64; backward
  FlashAttention-2's 264 without masks. As fractions of the peak on every card.
- Memory: 0.87 of the data sheet's rate, between the 0.85 and 0.9 of large copies (BabelStream's and STREAM's figures).
- Launches: NVIDIA, "Getting started with CUDA graphs" (2019): between kernels of one stream 0.9 microseconds pass; one
  costs the host 3.8 by the runtime alone. PyTorch's dispatch, autograd and allocator come on top in eager mode.
"""

from dataclasses import dataclass

from benchmarks.roofline.works import Work
from deconattn.cost.hardware import PEAK_BF16_FLOPS

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
        large: part of the bf16 peak that large products reach.
        attention: part of the peak that attention reaches, by head size: forward, backward.
    """

    narrow: float
    single: float
    bandwidth: float
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
    "A100": Card(PEAK_BF16_FLOPS["A100"], 19.5e12, 2.039e12, 0.8, {64: (0.5, 0.42), 128: (0.6, 0.5)}),
    "H100": Card(PEAK_BF16_FLOPS["H100"], 67e12, 3.35e12, 720 / 989, _HOPPER),
    "H200": Card(PEAK_BF16_FLOPS["H200"], 67e12, 4.8e12, 720 / 989, _HOPPER),
    "B200": Card(PEAK_BF16_FLOPS["B200"], 80e12, 8e12, 720 / 989, _HOPPER),
    "MI300X": Card(PEAK_BF16_FLOPS["MI300X"], 163.4e12, 5.3e12, 620 / 1307, _HALF),
}
"""The SXM or OAM versions, 80 GB of the A100."""
