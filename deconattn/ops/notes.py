"""What operations have to say of their way, a line each."""

import os
import sys

from deconattn.shown import one_line

LONGEST = 300
"""Characters of an error: a compiler's are whole programs."""


def say(text: str) -> None:
    """Print a line to standard error, once for a machine's ranks, which have the same GPUs and packages."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def said_of(error: BaseException) -> str:
    """An error's class and words, in one line that is not too long."""
    return one_line(f"{type(error).__name__}: {error}")[:LONGEST]
