"""What a model costs: parameters, FLOPs, memory and communication, summed over its mixers' own accounts.

:mod:`parameters`, :mod:`flops` and :mod:`generation` are of a model; :mod:`stages` cuts it for a pipeline. A
:mod:`job` is a model on a topology: :mod:`memory` (from :mod:`activations` and :mod:`zero`), :mod:`communication`,
:mod:`recommend`, and :mod:`report`, which prints them; :mod:`tables` compares variants. The formulas, and where the
paper prints others: docs/costs.md.
"""
