"""Prediction of a training step's time on a GPU that is not at hand, from what the step was counted to do.

:mod:`.counting` counts a step's operations, :mod:`.works` says what an operation asks for, :mod:`.trace` trains on the
null GPU (tests/nullgpu), :mod:`.cards` has what GPUs give, :mod:`.prediction` puts them together, and :mod:`.predict`
is the command.
"""
