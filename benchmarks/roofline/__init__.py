"""Prediction of a training step's time on a GPU that is not at hand, from what the step was counted to do.

:mod:`.counting` counts a step's operations, :mod:`.works` says what an operation asks for, :mod:`.trace` trains on the
null GPU (tests/nullgpu), :mod:`.prediction` puts them together with what GPUs give (:mod:`deconattn.cost.cards`), and
:mod:`.predict` is the command.
"""
