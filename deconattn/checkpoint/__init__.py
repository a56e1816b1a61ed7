"""Stored models: the format of our checkpoints, and any kind of folder opened as a model.

:mod:`.format` writes and verifies step folders by their :mod:`.manifest`, :mod:`.tensors` compares their tensors with a
model, :mod:`.in_use` keeps what is read from being deleted. :mod:`.kinds` tells a run, a step, an export and a Hugging
Face model apart, :mod:`.hf_config` and :mod:`.hf_weights` read the last, :mod:`.stored_model` opens all of them.
Nothing here imports DeepSpeed.
"""
