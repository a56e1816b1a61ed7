"""Costs of a model: parameters, memory, communication and generation, summed over its mixers' own counts.

A :mod:`.job` is a model on a topology: :mod:`.memory` (from :mod:`.activations` and :mod:`.zero`),
:mod:`.communication` (with :mod:`.context`), :mod:`.recommend`, and :mod:`.report`, which prints them; :mod:`.tables`
compares variants. FLOPs are the model's (:mod:`deconattn.model.flops`). The formulas, and where the paper prints
others: docs/costs.md.
"""
