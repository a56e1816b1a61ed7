"""Pure functions on tensors: each variant's mixing, once as the paper writes it and once as it trains.

:mod:`deconattn.ops.reference` holds the formulas, readable and exact in float64; the other modules hold
the paths that train, each tested against it, forward and backward.
"""
