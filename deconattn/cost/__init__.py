"""What a model costs: parameters, FLOPs, memory and communication, summed over its mixers' own accounts.

:mod:`parameters` and :mod:`flops` are of a model; :mod:`stages` cuts it for a pipeline. A :mod:`job` is a
model on a topology: :mod:`memory` (from :mod:`activations` and :mod:`zero`), :mod:`communication`,
:mod:`recommend`, and :mod:`report`, which prints them.
"""
