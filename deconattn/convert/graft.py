"""A Hugging Face model's weights into a freshly initialised model of ours, and what became of each tensor."""

import torch

from deconattn.checkpoint.hf_weights import HFWeights
from deconattn.checkpoint.origins import STREAMS, Origins
from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import FIXED_TEXT


@torch.no_grad()
def graft(model: CausalLM, source: HFWeights, keep: frozenset[str] = frozenset()) -> Origins:
    """Overwrite what `model` shares with `source` by name and shape, in place.

    Args:
        keep: tensors of the model that are not to be overwritten.

    Raises:
        UserError: the model's sequences are longer than the source's fixed stream.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    taken, unused = set(), []
    for name in source:
        target = tensors.get(name)
        if target is None or name in keep:
            unused.append(name)
            continue
        value = source.read(name)
        if name in STREAMS:
            if len(value) < len(target):
                raise UserError(
                    f"--seq-len {len(target)} is beyond the fixed stream of {source.folder}, {len(value)} tokens: "
                    f"give at most that{', or --fixed-text' if name == FIXED_TEXT else ''}"
                )
            value = value[: len(target)]
        if value.shape == target.shape:
            target.copy_(value)
            taken.add(name)
        else:
            unused.append(name)
    return Origins(
        taken=[name for name in tensors if name in taken],
        initialised=[name for name in tensors if name not in taken],
        unused=unused,
    )
