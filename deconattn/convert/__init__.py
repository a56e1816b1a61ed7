"""Conversion: our checkpoints to one safetensors file, and Hugging Face models to runs of ours.

Topology needs no conversion: any number of ranks resumes from a checkpoint as it is. `source` tells what a folder
is. Outward there is `state_dict`. Inward, in the order of use: `hf_config` (what the model is, and whether ours can
be it), `hf_weights` (its tensors), `flags` (the run that it begins), `vocabulary` (whether the corpus's ids are its
own), `graft` (its weights into a freshly initialised model), `summary` (what became of each tensor) and `new_run`
(the whole). Nothing here imports DeepSpeed.
"""
