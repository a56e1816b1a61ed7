"""From a packed corpus to batches: `sample_layout` and `best_fit` (how samples lie in it), `sampler` (which comes
when), `batches`, and `loader` (ahead of their use, by a thread or by worker processes).
"""
