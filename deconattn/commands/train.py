"""Train, as launch.sh does in a clone: train FLAGS."""

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Check the flags, start the ranks, and wait for them; their exit code."""
    from deconattn.launch.launcher import launch

    return launch(words)
