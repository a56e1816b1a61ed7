"""The number of files that a process may have open: raised as far as the system lets us, told where that is too low."""

import resource
import sys
from contextlib import suppress

OWN_FILES = 256
"""Files of a rank that are no connections: libraries, logs, pipes of loader workers, a checkpoint under way."""
CONNECTIONS = 2
"""Connections a rank that rank 0 has, whose store the others meet at, or that every rank has with gloo."""


def raise_open_files(world_size: int) -> str | None:
    """Raise RLIMIT_NOFILE to the hard limit; shells and Slurm often start programs with 1024 of a million.

    Returns:
        A line where a run of so many ranks may need more than the hard limit, else None.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS takes no number beyond one of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OWN_FILES + CONNECTIONS * world_size
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return None
    return (
        f"a process may have {allowed} files open here, and one of {world_size} ranks may need {needed}: raise the "
        "hard limit (LimitNOFILE= of the service that starts jobs, or nofile in /etc/security/limits.conf)"
    )


def say_if_too_low(world_size: int, rank: int) -> None:
    """Raise the limit on every rank; rank 0, which needs most, says where it is too low."""
    line = raise_open_files(world_size)
    if line is not None and rank == 0:
        print(f"warning: {line}", file=sys.stderr, flush=True)
