"""One rank's way in, the Python half of `launch.sh`."""

import os
import sys

import torch.distributed

from deconattn.errors import UserError
from deconattn.train import runtime
from deconattn.train.interrupt import StopRequest
from deconattn.train.preflight import checked_flags


def main() -> None:
    """Train, and exit 0; exit 2 with one line on standard error where the user can mend the cause."""
    stop = StopRequest()
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    try:
        flags = checked_flags(arguments, runtime.world_size())
    except UserError as error:
        if runtime.rank() == 0:  # all ranks found the same
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    runtime.start_distributed()
    from deconattn.train.trainer import Trainer

    try:
        Trainer(flags, stop).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # not sys.exit: other ranks may wait in a collective that will never be joined
    torch.distributed.destroy_process_group()
