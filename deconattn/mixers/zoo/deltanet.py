"""DeltaNet: linear attention whose state is corrected by the delta rule (Yang et al. 2024, arXiv:2406.06484).

    S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,    o_t = S_t q_t / sqrt(d_k),    O = W_o norm(o)
    q, k = l2norm(silu(conv(W H))),    v = silu(conv(W_v H)),    beta = sigmoid(W_beta H)

Convolutions are of four taps. The norm is an RMSNorm of each head, with a scale that the heads share. Keys and values
are as wide as parameters match standard attention's: a channel of a head or two less than its `head_dim`.
"""

from deconattn.mixers.delta import DeltaMixer
from deconattn.mixers.registry import register


@register("deltanet")
class DeltaNet(DeltaMixer):
    """Weights of either sign, which depend on all keys between two tokens."""
