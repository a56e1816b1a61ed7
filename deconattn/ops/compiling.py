"""Directives to torch.compile that do not import the compiler.

The decorators of `torch.compiler` import it where they are applied: a second and more in every process that so much
as looks at a variant. These leave that to the first compilation, or the first call.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def constant_in_graphs(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have the result taken for a constant, as `torch.compiler.assume_constant_result` does."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def outside_graphs(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have the function, and what it calls, run as written, as `torch.compiler.disable` does.

    PyTorch has this form of it for its own optimisers.
    """
    return _disable_dynamo(function)
