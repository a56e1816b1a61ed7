"""What a model costs: parameters and FLOPs, summed over its mixers' own accounts."""
