"""The model: block, decoder, head and loss, initial weights, its streams and its FLOPs.

Knows nothing of variants beyond the contract of :mod:`deconattn.mixers`, and nothing of training.
"""
