"""One rank's way in: the Python half of `launch.sh`, and by itself what `deconattn train` starts."""

import os
import sys
from datetime import timedelta

import torch.distributed

from deconattn.errors import UserError
from deconattn.program import command, quoted
from deconattn.train import runtime
from deconattn.train.interrupt import StopRequest
from deconattn.train.preflight import checked_flags


def main() -> None:
    """Train, and exit 0; exit 2 with one line on standard error where the user can mend the cause, else 1."""
    stop = StopRequest()
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    try:
        runtime.check_launcher_variables()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        flags = checked_flags(arguments, runtime.world_size())
        if flags.run.max_restarts:
            raise UserError(f"--max-restarts needs our own launcher: use {command('train')} in place of deepspeed")
    except UserError as error:
        if runtime.rank() == 0:  # all ranks found the same
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        runtime.start_distributed(timedelta(minutes=flags.engine.distributed_timeout_minutes))
    except RuntimeError as error:
        meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = next(iter(str(error).splitlines()), "")
        print(f"error: rank {runtime.rank()} did not meet the other ranks at {meeting}: {reason}", file=sys.stderr)
        sys.exit(1)

    from deconattn.train.faults import Watch
    from deconattn.train.peers import check_alike, introduce
    from deconattn.train.trainer import Trainer

    watch = Watch(introduce())
    try:
        check_alike(flags, watch.peers)
        trainer = Trainer(flags, stop)
        resume = f"{command('train')} --save {quoted(trainer.run_folder)} --resume"
        watch.situation = lambda: f", after step {trainer.progress.step}; to go on: {resume}"
        trainer.run()
        watch.leave()
    except Exception as error:
        watch.end(error)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
