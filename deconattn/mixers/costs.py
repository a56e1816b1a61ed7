"""What RMSNorm keeps for its backward pass."""


def rms_norm_bytes(vectors: int, width: int, bytes_per_element: int, fused: bool) -> int:
    """Bytes kept for `vectors` vectors of `width` elements.

    PyTorch's fused kernel (GPUs) keeps its input and one fp32 number a vector. Where there is none (CPUs), it
    normalises in fp32 and keeps the input and the result in that format, beside the number.
    """
    elements = vectors * width
    return 4 * vectors + (elements * bytes_per_element if fused else 8 * elements)
