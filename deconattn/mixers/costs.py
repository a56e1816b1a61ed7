"""Workload that a mixer's costs are counted for, and counts that several mixers share."""

from dataclasses import dataclass

from deconattn.layers.config import ModelConfig


@dataclass(frozen=True)
class Workload:
    """Shape and format of one layer's work.

    Attributes:
        rows: sequences; where a pass carries the fixed streams, their rows among them.
        length: tokens of each; of a decoding step, those held after it.
        bytes_per_element: of activations and caches.
        tp_size: tensor-parallel ranks. Bytes are those of the rank that holds most.
        fused_norms: RMSNorm runs in one kernel (:func:`rms_norm_bytes`).
    """

    rows: int
    length: int
    bytes_per_element: int = 4
    tp_size: int = 1
    fused_norms: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows."""
        return self.rows * self.length


def rms_norm_bytes(vectors: int, width: int, bytes_per_element: int, fused: bool) -> int:
    """Bytes saved for backward by an RMSNorm over `vectors` vectors of `width` elements.

    PyTorch's fused kernel (GPUs) keeps its input and one fp32 number a vector. Where there is none (CPUs), it
    normalises in fp32 and keeps the input and the result in that format, beside the number.
    """
    elements = vectors * width
    return 4 * vectors + (elements * bytes_per_element if fused else 8 * elements)


def attention_parameters(config: ModelConfig) -> int:
    """Number of parameters of standard attention in one layer, which every variant matches."""
    widths = config.query_size + 2 * config.key_value_size
    weights = config.hidden_size * (widths + config.query_size)
    return weights + config.attention_bias * widths + config.qk_norm * 2 * config.head_dim
