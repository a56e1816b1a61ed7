"""Parallelism of one model over many ranks: tensor, sequence and pipeline, applied from outside the model.

Model and mixers know nothing of ranks; they declare how their tensors may be cut. As the work flows:
:mod:`.process_group` (joining the others), :mod:`.topology` (which rank holds what), :mod:`.tensor` (cut layers and
what ranks exchange around them), :mod:`.entrance` (what enters them, and its gradient), :mod:`.vocabulary` (embedding,
head and loss), :mod:`.stages` (layers of each pipeline stage), :mod:`.pipeline` (stages under DeepSpeed),
:mod:`.partitions` (what ZeRO-3 leaves of a parameter),
:mod:`.build`, which puts them together, and :mod:`.trial`, which tries a plugin's variant.
"""
