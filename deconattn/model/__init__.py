"""The model: configuration, rotary embedding, block, decoder, head and loss, initial weights.

Knows nothing of variants beyond the contract of :mod:`deconattn.mixers`, and nothing of training.
"""
