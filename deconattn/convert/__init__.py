"""Conversion: our checkpoints to one safetensors file, and Hugging Face models to runs of ours.

Topology needs no conversion: any number of ranks resumes from a checkpoint as it is. Outward there is
:mod:`.state_dict`. Inward, in the order of use, after :mod:`deconattn.checkpoint` has read the model: :mod:`.run_flags`
(the run that it begins), :mod:`.graft` (its weights into a freshly initialised model) and :mod:`.new_run` (the whole).
Nothing here imports DeepSpeed.
"""
