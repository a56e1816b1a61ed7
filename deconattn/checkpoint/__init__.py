"""Stored models: the format of our checkpoints, and any kind of folder opened as a model.

:mod:`.slice_file` is what one rank writes, :mod:`.manifest` the list of what all have written, :mod:`.slices` reads any
part of a tensor from it, :mod:`.format` opens step folders. :mod:`.tensors` compares their tensors with a model,
:mod:`.in_use` keeps what is read from being deleted. :mod:`.kinds` tells a run, a step, an export and a Hugging
Face model apart, :mod:`.hf_config` and :mod:`.hf_weights` read the last, :mod:`.stored_model` opens all of them.
Nothing here imports DeepSpeed.
"""
