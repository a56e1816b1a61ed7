"""Modules whose call may be replaced by an operation over their tensors."""

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.module import _has_any_global_hook


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what the class `kind` does and no more: no hook, no other forward or tensors.

    Hooks are also what gathers weights that ZeRO-3 or FSDP has cut; quantised and adapted layers are other classes, or
    have tensors of other kinds.
    """
    # Hooks first: merely to look at a weight that ZeRO-3 has cut may gather it.
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if type(module) is not kind or hooked or _has_any_global_hook() or "forward" in vars(module):
        return False
    return all(type(tensor) is Parameter for tensor in module._parameters.values() if tensor is not None)
